"""What a shard server can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from mach.inference import Provider
from mach.serving import CommaSeparatedInts, ServingSettings

__all__ = ["ShardSettings"]


class ShardSettings(ServingSettings):
    """Flags of ``python -m shard_server``; environment variables begin with ``MACH_SHARD_``."""

    model_config = SettingsConfigDict(env_prefix="MACH_SHARD_")

    bundle: Path
    """Directory of the bundle to serve."""
    repetition: CommaSeparatedInts
    """The repetitions to serve, such as 3 or 0,1,2."""
    provider: Provider = "cpu"
    """Where inference runs. cuda fails to start where there is none; auto takes what there is."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads that ONNX Runtime uses within one run of one repetition."""
    workers: int = Field(1, ge=1, le=1024)
    """Repetitions run at the same time, a thread each."""
    inline_microseconds: int = Field(1000, ge=0, le=1_000_000)
    """Batches expected to take less run on the event loop, which saves the cost of a change of
    threads; longer ones run on worker threads. 0 always uses worker threads."""
    max_batch_size: int = Field(256, ge=1, le=65_536)
    """Most queries in a request, and most that are run together."""
    max_nonzeros: int = Field(1024, ge=1, le=1_000_000)
    """Most features that a query may have."""
    max_text_characters: int = Field(4096, ge=1, le=1_000_000)
    """Longest query text."""
    queue_capacity: int = Field(2048, ge=1, le=10_000_000)
    """Queries that may wait; requests beyond it are refused with RESOURCE_EXHAUSTED."""
    max_in_flight_per_stream: int = Field(256, ge=1, le=65_536)
    """Requests accepted on one stream and not yet answered, beyond which it is not read."""

    @field_validator("repetition")
    @classmethod
    def _name_some_once(cls, value: list[int]) -> list[int]:
        if not value:
            raise ValueError("name at least one repetition")
        if len(set(value)) != len(value) or min(value) < 0:
            raise ValueError(f"{value} are not different numbers from 0")
        return value

"""What a shard server can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from mach.inference import CudaSettings, Precision, Provider
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

    cuda_memory_mib: int = Field(0, ge=0)
    """Most memory of the GPU for weights and work, in MiB; 0 for no limit. CUDA itself takes a few
    hundred more. While a bundle is replaced, both are in memory, each within this limit."""
    cuda_rows: int = Field(64, ge=1, le=1024)
    """Most queries that run at once on a GPU, rounded up to a power of two; larger batches are
    split."""
    cuda_widths: CommaSeparatedInts = Field([16, 32, 64, 128])
    """On a GPU, features that queries are padded to: each of these numbers, with each power of two
    of queries, is a shape that is made ready before serving. Longer queries run, but slower."""
    cuda_graphs: bool = True
    """On a GPU, capture each shape as a CUDA graph, which saves most of the cost of launching."""
    cuda_precision: Precision = "fp16"
    """On a GPU, precision of the output layer: fp16, or fp32 at twice the memory and time."""

    max_connection_age_seconds: float = 0.0
    """Not for a shard: an aggregator's stream lasts as long as its connection, whose end would
    fail what is on its way. Aggregators find new shards by themselves (dns:///NAME:PORT)."""

    @field_validator("max_connection_age_seconds")
    @classmethod
    def _never(cls, value: float) -> float:
        if value:
            raise ValueError(
                "is for aggregators: a shard would cut their streams, and fail what is on its way"
            )
        return value

    @field_validator("cuda_widths")
    @classmethod
    def _rise(cls, value: list[int]) -> list[int]:
        if not value or min(value) < 1 or value != sorted(set(value)):
            raise ValueError(f"{value} are not rising numbers from 1")
        return value

    @field_validator("repetition")
    @classmethod
    def _name_some_once(cls, value: list[int]) -> list[int]:
        if not value:
            raise ValueError("name at least one repetition")
        if len(set(value)) != len(value) or min(value) < 0:
            raise ValueError(f"{value} are not different numbers from 0")
        return value

    @property
    def cuda(self) -> CudaSettings:
        """How a GPU is used."""
        return CudaSettings(
            memory_mib=self.cuda_memory_mib,
            max_rows=self.cuda_rows,
            widths=tuple(self.cuda_widths),
            graphs=self.cuda_graphs,
            precision=self.cuda_precision,
        )

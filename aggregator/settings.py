"""What an aggregator can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from aggregator.fanout import Target
from aggregator.policy import FanOutPolicy, Limits
from mach.errors import ConfigError
from mach.serving import CommaSeparatedStrings, ServingSettings
from mach.tls import ClientTls, Tls, check_pair
from mach.v1 import shard_pb2

__all__ = ["AggregatorSettings"]

_ENCODINGS = {
    "uint8": shard_pb2.ENCODING_UINT8,
    "float16": shard_pb2.ENCODING_FLOAT16,
    "float32": shard_pb2.ENCODING_FLOAT32,
}


class AggregatorSettings(ServingSettings):
    """Flags of ``python -m aggregator``; environment variables begin ``MACH_AGGREGATOR_``."""

    model_config = SettingsConfigDict(env_prefix="MACH_AGGREGATOR_")

    bundle: Path
    """Directory of the bundle to serve."""
    shards: CommaSeparatedStrings
    """Addresses of the shards, in any order: each says which repetitions it holds, and several
    that hold the same are replicas. HOST:PORT, unix:PATH, or dns:///NAME:PORT for every address
    that the name has, looked up again every few seconds."""
    shard_ca: Path | None = None
    """A PEM file with the authorities one of which must have signed the shards' certificates:
    shards are then spoken to over TLS only. Where a shard was found by name (dns:///NAME:PORT) its
    certificate must have that name, else the host of its address."""
    shard_certificate: Path | None = None
    """A PEM file with the certificate to show to shards that ask for one (mutual TLS)."""
    shard_key: Path | None = None
    """A PEM file with its key, without a passphrase."""
    shard_server_name: str = ""
    """The name that every shard's certificate must have instead."""
    log_queries: bool = False
    """Write the text of each query to the log. Without it no log line carries any."""
    workers: int = Field(1, ge=1, le=256)
    """Processes that share --listen, each with connections, queues and metrics of its own; the
    catalog and stored buckets are mapped once. Worker i has its metrics, admin and health ports i
    above those given. On Kubernetes use replicas instead."""
    minimum_repetitions: int | None = Field(None, ge=1, le=1000)
    """Repetitions that must answer where a request does not say, and that must be reachable for
    the health service to say SERVING; half of the bundle's, rounded up, by default."""
    default_timeout_seconds: float = Field(1.0, gt=0, le=3600)
    """Time for a call whose caller set no deadline."""
    deadline_margin_seconds: float = Field(0.01, ge=0, le=60)
    """What is kept of the caller's deadline for merging and the way back; at least 5 % and at
    most half of it."""
    max_k: int = Field(1000, ge=1, le=1_000_000)
    """Most products a request may ask for."""
    max_batch_size: int = Field(256, ge=1, le=65_536)
    """Most queries in a call."""
    max_waiting_calls: int = Field(100, ge=1, le=1_000_000)
    """Calls that have arrived and were not yet looked at, beyond which gRPC drops new ones, which
    takes next to no time: their callers see CANCELLED at once. Many more, and in an overload
    calls wait there in vain; fewer than come at the same moment, and some are dropped."""
    max_text_length: int = Field(4096, ge=1, le=1_000_000)
    """Longest query text and longest filter, in characters."""
    max_nonzeros: int = Field(1024, ge=1, le=1_000_000)
    """Most features that a query may have; no more than the shards accept."""
    max_product_ids: int = Field(10_000, ge=1, le=10_000_000)
    """Most ids in an allowed or blocked list."""
    transport: Literal["stream", "unary"] = "stream"
    """How shards are spoken to: over one long-lived stream each, which costs least, or by a
    call a message, which every proxy lets through."""
    encoding: Literal["uint8", "float16", "float32"] = "uint8"
    """How shards write log-probabilities. 8 bits are the least traffic and change no accuracy
    figure measured."""
    max_coalesced: int = Field(64, ge=1, le=65_536)
    """Most queries sent to the shards in one message; those that wait are sent together."""
    max_in_flight: int = Field(1, ge=1, le=1024)
    """Batches on their way to the shards at a time; more suit shards far away."""
    gather_share: float = Field(0.125, ge=0, le=1)
    """Queries that do not come alone are sent when none has come for this share of the time a
    batch takes, 5 ms at most. 0 sends what there is."""
    max_queue: int = Field(1024, ge=1, le=10_000_000)
    """Queries that may wait; calls beyond it are refused with RESOURCE_EXHAUSTED."""
    max_queue_seconds: float = Field(0.25, gt=0, le=3600)
    """Expected wait beyond which calls are refused, even if their deadline is later."""
    straggler_seconds: float = Field(0.05, gt=0, le=3600)
    """No repetition is given up sooner than this."""
    straggler_factor: float = Field(4.0, ge=1, le=1000)
    """A repetition is given up, where enough others answered, when it takes this many times as
    long as half of the others took."""
    hedge_fraction: float = Field(0.05, ge=0, le=1)
    """Share of the messages that may be sent to a second replica when the first is slow."""
    probe_seconds: float = Field(1.0, gt=0, le=3600)
    """How often a shard that is silent is asked for its state, and how long it may take."""
    eject_seconds: float = Field(1.0, gt=0, le=3600)
    """How long a shard that is late or fails is left out; doubles, up to 30 times as long, while
    it stays so."""
    resolve_seconds: float = Field(5.0, gt=0, le=3600)
    """How often names in dns:/// addresses are looked up."""
    inline_merge_microseconds: int = Field(500, ge=0, le=1_000_000)
    """Merges expected to take less are done on the event loop, which saves a change of threads.
    0 always uses threads."""
    merge_threads: int = Field(1, ge=1, le=1024)
    """Threads that merge answers and look products up."""

    @field_validator("shards")
    @classmethod
    def _name_some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one address")
        if len(set(value)) != len(value):
            raise ValueError("an address is named twice")
        for text in value:
            try:
                Target.parse(text)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _shard_tls_is_whole(self) -> Self:
        try:
            check_pair(
                self.shard_certificate, self.shard_key, ("--shard-certificate", "--shard-key")
            )
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if self.shard_ca is None:
            for flag, value in (
                ("--shard-certificate", self.shard_certificate),
                ("--shard-server-name", self.shard_server_name),
            ):
                if value:
                    raise ValueError(f"{flag} needs --shard-ca as well")
        return self

    @property
    def shard_tls(self) -> ClientTls | None:
        """How shards are spoken to; None for plain text.

        Raises:
            ConfigError: if a file cannot be used.
        """
        if self.shard_ca is None:
            return None
        return ClientTls(
            Tls(self.shard_ca, self.shard_certificate, self.shard_key, self.shard_server_name),
            ("--shard-ca", "--shard-certificate", "--shard-key"),
            "shard_tls",
        )

    @property
    def targets(self) -> list[Target]:
        """The shards, parsed."""
        return [Target.parse(text) for text in self.shards]

    @property
    def limits(self) -> Limits:
        """What a request may ask for."""
        return Limits(
            max_k=self.max_k,
            max_batch_size=self.max_batch_size,
            max_text_length=self.max_text_length,
            max_nonzeros=self.max_nonzeros,
            max_product_ids=self.max_product_ids,
        )

    @property
    def encoding_number(self) -> int:
        """``mach.v1.Encoding`` of ``encoding``."""
        return _ENCODINGS[self.encoding]

    @property
    def policy(self) -> FanOutPolicy:
        """How queries are sent and answers waited for."""
        return FanOutPolicy(
            minimum_repetitions=self.minimum_repetitions,
            encoding=self.encoding_number,
            max_rows=self.max_coalesced,
            max_message_bytes=self.max_message_bytes,
            max_in_flight=self.max_in_flight,
            gather_share=self.gather_share,
            inline_merge_seconds=self.inline_merge_microseconds * 1e-6,
            max_queue=max(self.max_queue, self.max_batch_size),
            max_queue_seconds=self.max_queue_seconds,
            straggler_seconds=self.straggler_seconds,
            straggler_factor=self.straggler_factor,
            hedge_fraction=self.hedge_fraction,
            probe_seconds=self.probe_seconds,
            eject_seconds=self.eject_seconds,
            max_eject_seconds=30 * self.eject_seconds,
            resolve_seconds=self.resolve_seconds,
        )

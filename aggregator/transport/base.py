"""What every transport offers, and what travels over it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from mach.errors import InvalidInput, MachError
from mach.features import SparseBatch
from mach.tracing import Headers
from mach.v1 import shard_pb2
from mach.wire import sparse_to_proto

__all__ = ["Answer", "Done", "Payload", "ShardDescription", "ShardTransport", "Withdraw"]

#: What a shard answered, or why it did not.
Answer = shard_pb2.PredictResponse | MachError
#: Called once with it.
Done = Callable[[Answer], None]
#: Takes a prediction back; its ``Done`` is not called any more.
Withdraw = Callable[[], None]


@dataclass(frozen=True)
class ShardDescription:
    """What a shard says it holds.

    Attributes:
        bundle_versions: those that it answers from, the active one first.
        repetitions: increasing.
        num_buckets: B of the active bundle.
        num_features: F of the active bundle.
        provider: the execution provider in use.
        max_batch_size: most queries in a message.
    """

    bundle_versions: tuple[str, ...]
    repetitions: tuple[int, ...]
    num_buckets: int
    num_features: int
    provider: str
    max_batch_size: int

    @classmethod
    def from_bytes(cls, data: bytes) -> ShardDescription:
        """Read a shard's answer, a serialized ``DescribeShardResponse``.

        Raises:
            InvalidInput: if it is none.
        """
        try:
            message = shard_pb2.DescribeShardResponse.FromString(data)
        except DecodeError as error:
            raise InvalidInput("answer", f"cannot be decoded: {error}") from None
        return cls(
            # A shard of one version need not list it.
            tuple(message.bundle_versions) or (message.bundle_version,),
            tuple(sorted(set(message.repetitions))),
            message.num_buckets,
            message.num_features,
            message.provider,
            message.max_batch_size,
        )


class Payload:
    """The queries of one batch, written once for all the shards they go to."""

    __slots__ = ("_messages", "bundle_version", "encoding", "features")

    def __init__(self, features: SparseBatch, bundle_version: str, encoding: int) -> None:
        self.features = features
        self.bundle_version = bundle_version
        self.encoding = encoding
        self._messages: dict[tuple[int, ...], bytes] = {}

    def message(self, repetitions: tuple[int, ...]) -> bytes:
        """A serialized ``PredictRequest``; no repetitions means all that the shard holds."""
        message = self._messages.get(repetitions)
        if message is None:
            message = shard_pb2.PredictRequest(
                bundle_version=self.bundle_version,
                features=sparse_to_proto(self.features),
                repetitions=repetitions,
                encoding=self.encoding,  # type: ignore[arg-type]
            ).SerializeToString()
            self._messages[repetitions] = message
        return message


class ShardTransport(Protocol):
    """One connection to one shard. All methods are called on one event loop.

    Attributes:
        address: what it connects to.
        on_broken: set by the owner; called when a connection that was open breaks while
            no prediction may be in flight to tell.
    """

    address: str
    on_broken: Callable[[str], None]

    async def describe(self, seconds: float) -> ShardDescription:
        """Ask the shard what it holds, and open what predictions need.

        Raises:
            ServiceError: if it does not answer within ``seconds``.
            MachError: if it answers with an error.
        """

    def predict(
        self,
        payload: Payload,
        repetitions: tuple[int, ...],
        seconds: float,
        done: Done,
        trace: Headers = (),
    ) -> Withdraw:
        """Start a prediction.

        ``done`` is called from the event loop, never from within this call. The shard is told
        that an answer is of no use after ``seconds``; noticing that none came is the
        caller's part. ``trace`` tells it of a sampled trace.
        """

    async def close(self) -> None:
        """Close the connection; predictions in flight fail."""

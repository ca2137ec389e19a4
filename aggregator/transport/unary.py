"""gRPC with one unary call a message: dearer than a stream, but any proxy lets it through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from aggregator.transport.base import Done, Payload, ShardDescription, Withdraw
from aggregator.transport.channel import error_of
from mach.errors import InvalidInput, Unavailable
from mach.tracing import Headers
from mach.v1 import shard_pb2

__all__ = ["UnaryTransport"]

_METHOD = "/mach.v1.ShardService/Predict"
_DESCRIBE = "/mach.v1.ShardService/DescribeShard"


class UnaryTransport:
    """A call a message."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.on_broken: Callable[[str], None] = lambda _: None
        self._channel = channel
        # Bytes both ways, as in StreamTransport.
        self._predict: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            _METHOD, None, None
        )
        self._describe: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            _DESCRIBE, None, None
        )
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def describe(self, seconds: float) -> ShardDescription:
        """See :class:`ShardTransport`."""
        try:
            answer = await self._describe(b"", timeout=seconds)  # the request has no fields
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None
        return ShardDescription.from_bytes(answer)

    def predict(
        self,
        payload: Payload,
        repetitions: tuple[int, ...],
        seconds: float,
        done: Done,
        trace: Headers = (),
    ) -> Withdraw:
        """See :class:`ShardTransport`."""
        task = asyncio.create_task(self._call(payload.message(repetitions), seconds, done, trace))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def withdraw() -> None:
            task.cancel()

        return withdraw

    async def _call(self, message: bytes, seconds: float, done: Done, trace: Headers) -> None:
        try:
            data = await self._predict(message, timeout=seconds, metadata=trace)
            answer = shard_pb2.PredictResponse.FromString(data)
        except grpc.aio.AioRpcError as error:
            done(error_of(error))
        except DecodeError as error:
            done(InvalidInput("answer", f"cannot be decoded: {error}"))
        except asyncio.CancelledError:
            if self._closing:  # else it was withdrawn
                done(Unavailable(f"the connection to {self.address} was closed"))
            raise
        else:
            done(answer)

    async def close(self) -> None:
        """See :class:`ShardTransport`."""
        self._closing = True
        await self._channel.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

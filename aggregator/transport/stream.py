"""gRPC with one long-lived bidirectional stream a shard."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from aggregator.transport.base import Done, Payload, ShardDescription, Withdraw
from aggregator.transport.channel import error_of
from mach.errors import InvalidInput, MachError, Unavailable, from_status
from mach.tracing import Headers
from mach.v1 import shard_pb2

__all__ = ["StreamTransport"]

_METHOD = "/mach.v1.ShardService/PredictStream"
_DESCRIBE = "/mach.v1.ShardService/DescribeShard"
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class _Message:
    """A prediction that is not answered yet."""

    __slots__ = ("body", "deadline", "done", "trace")

    def __init__(self, body: bytes, deadline: float, done: Done, trace: Headers) -> None:
        self.body = body
        self.deadline = deadline
        self.done = done
        self.trace = trace


class StreamTransport:
    """Messages and answers on one stream, matched by id.

    Writing never blocks the caller: messages wait in an outbox while the shard does not read,
    and one that is withdrawn or expires there is never sent.
    """

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.on_broken: Callable[[str], None] = lambda _: None
        self._channel = channel
        # Bytes in: the caller serializes once for all shards (see Payload). Bytes out: gRPC would
        # make None of what is no message, and a traceback in the log.
        self._open_stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            _METHOD, None, None
        )
        self._describe: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            _DESCRIBE, None, None
        )
        self._ids = itertools.count(1)
        self._unanswered: dict[int, _Message] = {}
        self._outbox: dict[int, _Message | None] = {}  # None: a cancellation
        self._wake = asyncio.Event()
        self._stream: asyncio.Task[None] | None = None

    async def describe(self, seconds: float) -> ShardDescription:
        """See :class:`ShardTransport`."""
        try:
            answer = await self._describe(b"", timeout=seconds)  # the request has no fields
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None
        description = ShardDescription.from_bytes(answer)
        self._start()
        return description

    def predict(
        self,
        payload: Payload,
        repetitions: tuple[int, ...],
        seconds: float,
        done: Done,
        trace: Headers = (),
    ) -> Withdraw:
        """See :class:`ShardTransport`."""
        number = next(self._ids)
        deadline = asyncio.get_running_loop().time() + seconds
        message = _Message(payload.message(repetitions), deadline, done, trace)
        self._unanswered[number] = self._outbox[number] = message
        self._start()
        self._wake.set()
        return partial(self._withdraw, number)

    async def close(self) -> None:
        """See :class:`ShardTransport`."""
        if self._stream is not None:
            self._stream.cancel()
            await asyncio.gather(self._stream, return_exceptions=True)
        await self._channel.close()

    def _start(self) -> None:
        if self._stream is None or self._stream.done():
            # It outlives the call that opens it and is not part of its context.
            self._stream = asyncio.create_task(
                self._run(), name=f"stream to {self.address}", context=Context()
            )

    def _withdraw(self, number: int) -> None:
        if self._unanswered.pop(number, None) is None:
            return
        if self._outbox.pop(number, None) is None:  # it was sent
            self._outbox[number] = None
            self._wake.set()

    async def _run(self) -> None:
        call = self._open_stream()
        writer = asyncio.create_task(self._write(call), name=f"writer to {self.address}")
        failure: MachError = Unavailable(f"{self.address} closed the connection")
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                self._receive(shard_pb2.PredictStreamResponse.FromString(cast("bytes", answer)))
        except DecodeError as error:
            failure = InvalidInput("answer", f"cannot be decoded: {error}")
        except grpc.aio.AioRpcError as error:
            failure = error_of(error)
        finally:
            writer.cancel()
            call.cancel()
            waiting, self._unanswered = self._unanswered, {}
            self._outbox.clear()
            for message in waiting.values():
                message.done(failure)
        self._stream = None
        self.on_broken(str(failure))

    def _receive(self, answer: shard_pb2.PredictStreamResponse) -> None:
        message = self._unanswered.pop(answer.id, None)
        if message is None:
            return  # withdrawn meanwhile, or an id we never gave
        if answer.code:
            status = _STATUS.get(answer.code, grpc.StatusCode.UNKNOWN)
            message.done(from_status(status, answer.message))
        else:
            message.done(answer.response)

    async def _write(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        time = asyncio.get_running_loop().time
        try:
            while True:
                while self._outbox:
                    number = next(iter(self._outbox))
                    message = self._outbox.pop(number)
                    if message is None:
                        head = shard_pb2.PredictStreamRequest(id=number, cancel=True)
                        await call.write(head.SerializeToString())
                        continue
                    timeout_us = int((message.deadline - time()) * 1e6)
                    if timeout_us > 0:
                        await call.write(_frame(number, timeout_us, message.body, message.trace))
                self._wake.clear()
                await self._wake.wait()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the reader meets the same failure and reports it


def _frame(number: int, timeout_us: int, request: bytes, trace: Headers) -> bytes:
    """A ``PredictStreamRequest`` around a request that is serialized already."""
    message = shard_pb2.PredictStreamRequest(id=number, timeout_us=timeout_us)
    for name, value in trace:  # fields are named as the headers are
        setattr(message, name, value)
    head = message.SerializeToString()
    length = len(request)
    tag = bytearray(b"\x12")  # field 2, length-delimited
    while length > 0x7F:
        tag.append(length & 0x7F | 0x80)
        length >>= 7
    tag.append(length)
    return b"".join((head, tag, request))

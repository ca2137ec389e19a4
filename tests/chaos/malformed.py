"""Messages that are not what they should be: pure noise, and good ones with something wrong."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import grpc
import grpc.aio

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_NUMBERS = [b"\x00", b"\x7f", b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01"]  # varints
_HTTP = b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
_TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


class Mutator:
    """An endless supply of malformed messages; the same for the same seed."""

    def __init__(self, good: Sequence[bytes], seed: int = 0) -> None:
        self.random = random.Random(seed)
        self._good = list(good)

    def noise(self, longest: int = 400) -> bytes:
        """Any bytes."""
        return self.random.randbytes(self.random.randrange(longest))

    def message(self) -> bytes:
        """A good message with one to four changes, or noise; a few happen to stay good."""
        if self.random.random() < 0.1:
            return self.noise()
        data = bytearray(self.random.choice(self._good))
        for _ in range(self.random.randint(1, 4)):
            self._change(data)
        return bytes(data)

    def _change(self, data: bytearray) -> None:
        at = self.random.randrange(len(data) + 1)
        end = min(len(data), at + self.random.randint(1, 12))
        kind = self.random.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << self.random.randrange(8)
        elif kind == 1:
            data[at:end] = self.random.randbytes(end - at)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:end] = self.random.choice(_NUMBERS)
        else:
            del data[at:]

    def connection(self) -> bytes:
        """What a stranger may send to the port itself."""
        kind = self.random.randrange(5)
        if kind == 0:
            return self.noise(2000)
        if kind == 1:
            return _HTTP + self.noise()
        if kind == 2:
            return _TLS + self.noise(500)
        if kind == 3:
            return PREFACE + self.noise(2000)
        frames = [self._frame() for _ in range(self.random.randint(1, 20))]
        return PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"".join(frames)

    def _frame(self) -> bytes:
        body = self.noise(100)
        kind, flags = self.random.randrange(12), self.random.randrange(256)
        stream = self.random.choice([0, 1, 3, 5, 2**31 - 1])
        return (
            len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
        )


async def send_connections(address: str, mutator: Mutator, count: int) -> None:
    """Open ``count`` connections, some at a time, and send noise on each."""
    host, _, port = address.rpartition(":")
    slots = asyncio.Semaphore(20)

    async def one() -> None:
        async with slots:
            data, abrupt = mutator.connection(), mutator.random.random() < 0.3
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(data)
                if not abrupt:
                    await writer.drain()
                    writer.write_eof()
                    # An answer may come; a server that waits for more is left after a moment.
                    await asyncio.wait_for(reader.read(65536), 0.2)
            except (OSError, TimeoutError):
                pass
            finally:
                writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(count)))


async def send_calls(
    channel: grpc.aio.Channel, method: str, mutator: Mutator, count: int
) -> Counter[str]:
    """Make ``count`` unary calls with malformed messages; returns how often each status came."""
    call = channel.unary_unary(method, None, None)
    statuses: Counter[str] = Counter()
    slots = asyncio.Semaphore(32)

    async def one() -> None:
        async with slots:
            try:
                await call(mutator.message(), timeout=10)
                statuses["OK"] += 1
            except grpc.aio.AioRpcError as error:
                statuses[error.code().name] += 1

    await asyncio.gather(*(one() for _ in range(count)))
    return statuses


async def send_on_streams(
    channel: grpc.aio.Channel, method: str, mutator: Mutator, count: int
) -> None:
    """The same on streams, each used until the server ends it.

    How one ended is not told reliably: a write that comes too late makes a client report an
    error of its own. The server's metrics know.
    """
    open_stream = channel.stream_stream(method, None, None)
    left = count
    while left > 0:
        call = open_stream(timeout=30)

        async def read(call: grpc.aio.StreamStreamCall[bytes, bytes] = call) -> None:
            try:
                while await call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError:
                pass

        reader = asyncio.create_task(read())
        try:
            for _ in range(min(left, 200)):
                left -= 1
                await call.write(mutator.message())
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # it has ended: the next message opens another
        await reader

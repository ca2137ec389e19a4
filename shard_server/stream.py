"""``PredictStream``: many requests on one long-lived stream.

Answers go out as they are ready. At most ``max_in_flight`` requests are accepted and not yet
answered; beyond that the stream is not read, so the caller's writes wait (HTTP/2 flow
control) and memory stays bounded even if it never reads its answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from mach import tracing
from mach.errors import InvalidInput, MachError, Unavailable, status_of
from mach.v1 import shard_pb2
from shard_server.batcher import Job
from shard_server.core import ShardCore
from shard_server.messages import fill_response, make_job
from shard_server.metrics import ShardMetrics
from shard_server.tracing import begin_message, end_message

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["PredictStreams"]

_logger = logging.getLogger(__name__)

#: How long a stream that is at an end waits for a caller that does not read.
_LAST_WRITE_SECONDS = 5.0


class PredictStreams:
    """All streams that are open, so that a drain can end them."""

    def __init__(self, core: ShardCore, metrics: ShardMetrics, max_in_flight: int) -> None:
        self._core = core
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._open: set[_Stream] = set()
        self._draining = False

    async def serve(self, context: Any) -> None:
        """Serve one stream until the caller has closed it and every answer is out.

        Raises:
            Unavailable: once a drain has answered what the stream had accepted.
        """
        if self._draining:
            raise Unavailable("the shard is draining")
        stream = _Stream(self._core, self._metrics, self._max_in_flight, context)
        self._open.add(stream)
        self._metrics.streams.inc()
        try:
            await stream.serve()
        finally:
            self._open.discard(stream)
            self._metrics.streams.dec()
        if self._draining:
            raise Unavailable("the shard is draining")

    def drain(self) -> None:
        """Read no more requests; streams end once they have answered those they accepted."""
        self._draining = True
        for stream in self._open:
            stream.stop_reading()


class _Stream:
    """One stream: a reader task, a writer task, and what is between them."""

    def __init__(
        self, core: ShardCore, metrics: ShardMetrics, max_in_flight: int, context: Any
    ) -> None:
        self._core = core
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._context = context
        self._jobs: dict[int, Job] = {}
        self._outbox: deque[shard_pb2.PredictStreamResponse] = deque()
        self._progress = asyncio.Event()  # something to write, or nothing more to read
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._all_read = False
        self._stopping = False  # on a message that is none: nothing more is written

    def stop_reading(self) -> None:
        """As if the caller had closed its side."""
        if self._reader is not None:
            self._reader.cancel()

    async def serve(self) -> None:
        """Read and write until both are done.

        Raises:
            DecodeError: if the caller sends what is no message.
        """
        self._reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            await asyncio.wait({self._reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            malformed = None
            if self._reader.done() and not self._reader.cancelled():
                malformed = self._reader.exception()
            self._all_read = True
            self._stopping = malformed is not None
            self._progress.set()
            if malformed is None:
                await writer
            else:
                # gRPC takes no status while a write is under way.
                await asyncio.wait({writer}, timeout=_LAST_WRITE_SECONDS)
                raise malformed
        finally:
            for task in (self._reader, writer):
                task.cancel()
            for job in self._jobs.values():
                _cancel(job)
            self._jobs.clear()
            await asyncio.gather(self._reader, writer, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            while len(self._jobs) + len(self._outbox) >= self._max_in_flight:
                self._room.clear()
                await self._room.wait()
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            received = time.monotonic()
            span = begin_message(message, received)
            tracing.enter(span)
            try:
                await self._accept(message, received)
            except MachError as error:
                self._answer_error(message.id, error, span)
            except Exception:
                _logger.exception("PredictStream failed on a request")
                failure = MachError("the server failed; see its log")
                self._answer_error(message.id, failure, span)

    async def _accept(self, message: shard_pb2.PredictStreamRequest, received: float) -> None:
        number = message.id
        if message.cancel:
            job = self._jobs.pop(number, None)
            if job is not None:
                _cancel(job)
            return
        if number in self._jobs:
            raise InvalidInput("id", f"{number} is in flight on this stream already")
        timeout = message.timeout_us
        job = await make_job(
            self._core,
            message.request,
            self._answerer(number),
            received=received,
            deadline=received + timeout * 1e-6 if timeout else None,
        )
        self._core.submit(job)
        self._jobs[number] = job

    def _answerer(self, number: int) -> Callable[[Job], None]:
        def answer(job: Job) -> None:
            self._jobs.pop(number, None)
            if job.error is not None:
                self._answer_error(number, job.error, job.span)
                return
            response = shard_pb2.PredictStreamResponse(id=number)
            fill_response(response.response, job)
            self._metrics.requests("OK").inc()
            end_message(job.span, "OK")
            self._outbox.append(response)
            self._progress.set()

        return answer

    def _answer_error(self, number: int, error: MachError, span: Span | None) -> None:
        status = status_of(error)
        self._metrics.requests(status.name).inc()
        end_message(span, status.name)
        self._outbox.append(
            shard_pb2.PredictStreamResponse(id=number, code=status.value[0], message=str(error))
        )
        self._progress.set()

    async def _write(self) -> None:
        while True:
            while self._outbox and not self._stopping:
                await self._context.write(self._outbox.popleft())
                self._room.set()
            if self._stopping or (self._all_read and not self._jobs):
                return
            self._progress.clear()
            await self._progress.wait()


def _cancel(job: Job) -> None:
    job.cancel()
    end_message(job.span, "CANCELLED")

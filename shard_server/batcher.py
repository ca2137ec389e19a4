"""Requests wait while inference runs, and what waits is then run together.

No request is delayed on purpose: an idle batcher starts at once. The queue is bounded, and
what expired or was cancelled while it waited is dropped before it costs anything.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial

from mach import tracing
from mach.errors import DeadlineExceeded, MachError, Overloaded, Unavailable
from mach.features import SparseBatch
from mach.inference import LoadedBundle
from mach.wire import EncodedRows, encode_rows
from shard_server.metrics import ShardMetrics
from shard_server.tracing import trace_run

__all__ = ["Batcher", "Job"]

_logger = logging.getLogger(__name__)


class Job:
    """One request on its way through the shard.

    Attributes:
        loaded: the bundle version that answers it.
        features: its queries, checked.
        repetitions: those to compute.
        encoding: how the answer is written (``mach.v1.Encoding``).
        deadline: when an answer is of no more use, on the clock of :func:`time.monotonic`.
        received: when it came in, on the same clock.
        on_done: called on the event loop once ``answers`` or ``error`` is set; not if cancelled.
        answers: the encoded rows of each repetition.
        error: why there are none.
        queue_seconds: how long it waited.
        inference_seconds: how long the batch it ran in took.
        seconds: what it adds to the time of a batch, as estimated.
        span: of the request, if it is sampled.
        context: of the call, for what is logged about this job.
    """

    __slots__ = (
        "answers", "cancelled", "context", "deadline", "encoding", "error", "features",
        "inference_seconds", "loaded", "on_done", "queue_seconds", "received", "repetitions",
        "seconds", "span",
    )  # fmt: skip

    def __init__(
        self,
        loaded: LoadedBundle,
        features: SparseBatch,
        repetitions: tuple[int, ...],
        encoding: int,
        on_done: Callable[[Job], None],
        *,
        deadline: float | None = None,
        received: float | None = None,
    ) -> None:
        self.loaded = loaded
        self.features = features
        self.repetitions = repetitions
        self.encoding = encoding
        self.on_done = on_done
        self.deadline = deadline
        self.received = time.monotonic() if received is None else received
        self.cancelled = False
        self.answers: dict[int, EncodedRows] = {}
        self.error: MachError | None = None
        self.queue_seconds = 0.0
        self.inference_seconds = 0.0
        self.seconds = loaded.marginal_seconds(
            len(features), len(features.indices), len(repetitions)
        )
        self.span = tracing.sampled()
        self.context = copy_context()

    def cancel(self) -> None:
        """Nobody waits any more: drop it if it has not started, forget its answer if it has."""
        self.cancelled = True


class Batcher:
    """The queue in front of the models. Everything but inference happens on the event loop."""

    def __init__(
        self,
        metrics: ShardMetrics,
        *,
        max_batch_size: int,
        queue_capacity: int,
        workers: int,
        inline_seconds: float,
    ) -> None:
        """Start with an empty queue.

        Args:
            metrics: where to count.
            max_batch_size: queries run together; a single request may exceed it.
            queue_capacity: queries that may wait.
            workers: repetitions run at the same time.
            inline_seconds: batches expected to take less run on the event loop.
        """
        self._metrics = metrics
        self._max_batch_size = max_batch_size
        self._capacity = queue_capacity
        self._workers = workers
        self._inline_seconds = inline_seconds
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="inference")
        self._queue: deque[Job] = deque()
        self._waiting_rows = 0
        self._waiting_seconds = 0.0
        self._busy_until = 0.0
        self._pumping = False
        self._closed = False
        self._context = Context()  # a batch is no one request's

    def submit(self, job: Job) -> None:
        """Queue a job; ``job.on_done`` follows, never before this returns.

        Raises:
            Overloaded: if the queue is full, or the wait would outlast the job's deadline.
            Unavailable: after :meth:`close`.
        """
        if self._closed:
            raise Unavailable("the shard is stopping")
        rows = len(job.features)
        now = time.monotonic()
        wait = self._waiting_seconds / self._workers + max(0.0, self._busy_until - now)
        if self._waiting_rows and self._waiting_rows + rows > self._capacity:
            self._metrics.shed.inc()
            raise Overloaded(
                f"the queue is full: {self._waiting_rows} queries wait", _milliseconds(wait)
            )
        if job.deadline is not None and self._queue and now + wait > job.deadline:
            self._metrics.shed.inc()
            raise Overloaded(
                f"the queue takes {_milliseconds(wait)} ms, longer than the request's deadline",
                _milliseconds(wait),
            )
        self._queue.append(job)
        self._waiting_rows += rows
        self._waiting_seconds += job.seconds
        self._metrics.in_flight.inc()
        if not self._pumping:
            self._pumping = True
            # Not at once: requests that arrived together are handled before this runs.
            asyncio.get_running_loop().call_soon(self._pump, context=self._context)

    def close(self) -> None:
        """Refuse what waits and end the worker threads."""
        self._closed = True
        while self._queue:
            self._drop(self._queue.popleft(), Unavailable("the shard is stopping"))
        self._pool.shutdown(wait=True)

    def _pump(self) -> None:
        """Start the next batch."""
        batch = self._next_batch()
        self._metrics.queue_depth.set(self._waiting_rows)
        if not batch:
            self._pumping = False
            return
        first = batch[0]
        features = SparseBatch.concatenate([job.features for job in batch])
        seconds = first.loaded.seconds(len(features), len(features.indices), len(first.repetitions))
        # A GPU is waited for on a thread: another bundle may be warming up on it.
        together = first.loaded.together
        if seconds < self._inline_seconds and not together:
            self._run(batch, features, first.repetitions)
            self._finish(batch)
            return
        shares = first.loaded.shares(first.repetitions, self._workers)
        self._busy_until = time.monotonic() + seconds / len(shares)
        tasks = [self._pool.submit(self._run, batch, features, share) for share in shares]
        waiting = itertools.count(1)
        loop = asyncio.get_running_loop()

        def one_done() -> None:
            if next(waiting) == len(tasks):
                self._finish(batch)

        for task in tasks:
            task.add_done_callback(lambda _: loop.call_soon_threadsafe(one_done))

    def _next_batch(self) -> list[Job]:
        """Take the jobs at the head that can run together, dropping those nobody waits for."""
        batch: list[Job] = []
        rows = 0
        now = time.monotonic()
        while self._queue:
            job = self._queue[0]
            count = len(job.features)
            if not job.cancelled and (job.deadline is None or job.deadline > now):
                if batch and (
                    rows + count > self._max_batch_size
                    or job.loaded is not batch[0].loaded
                    or job.repetitions != batch[0].repetitions
                ):
                    break
                batch.append(job)
                rows += count
                job.queue_seconds = now - job.received
                self._metrics.queue_wait.observe(job.queue_seconds, tracing.exemplar(job.span))
            else:
                self._metrics.dropped("cancelled" if job.cancelled else "expired").inc()
                self._drop(job, DeadlineExceeded("the request waited longer than its deadline"))
            self._queue.popleft()
            self._waiting_rows -= count
            self._waiting_seconds -= job.seconds
        if not self._queue:
            self._waiting_seconds = 0.0  # sheds the rounding of a long sum
        if batch:
            self._metrics.batch_size.observe(rows)
        return batch

    def _drop(self, job: Job, error: MachError) -> None:
        self._metrics.in_flight.dec()
        if not job.cancelled:
            job.error = error
            job.on_done(job)

    def _run(self, batch: Sequence[Job], features: SparseBatch, repetitions: Sequence[int]) -> None:
        """Compute and encode; on a worker thread or the event loop."""
        start = time.monotonic()
        try:
            self._compute(batch, features, repetitions)
        except Exception as error:
            if len(batch) == 1:
                # A copy: several threads may log about one job.
                batch[0].context.copy().run(_logger.exception, "inference failed")
                batch[0].error = MachError("inference failed; see the shard's log")
                batch[0].error.__cause__ = error
            else:  # whatever it was, it is one request's alone
                for job in batch:
                    self._run([job], job.features, repetitions)
        seconds = time.monotonic() - start
        for job in batch:
            job.inference_seconds = max(job.inference_seconds, seconds)

    def _compute(
        self, batch: Sequence[Job], features: SparseBatch, repetitions: Sequence[int]
    ) -> None:
        span = next((job.span for job in batch if job.span is not None), None)
        observe = partial(self._observe, tracing.exemplar(span))
        loaded, encoding = batch[0].loaded, batch[0].encoding
        if all(job.encoding == encoding for job in batch):
            encoded = loaded.run_encoded(features, repetitions, encoding, observe)
            for repetition, whole in encoded.items():
                for job, start, stop in _spans(batch):
                    job.answers[repetition] = whole.rows(start, stop, len(features))
            return
        for repetition, rows in loaded.run(features, repetitions, observe).items():
            for job, start, stop in _spans(batch):
                job.answers[repetition] = encode_rows(rows[start:stop], job.encoding)

    def _observe(self, exemplar: dict[str, str] | None, repetition: int, seconds: float) -> None:
        self._metrics.inference(repetition).observe(seconds, exemplar)

    def _finish(self, batch: Sequence[Job]) -> None:
        self._busy_until = 0.0
        if self._queue:
            # After what is ready on the loop, so that arrivals join the next batch.
            asyncio.get_running_loop().call_soon(self._pump)
        else:
            self._pumping = False
        self._metrics.in_flight.dec(len(batch))
        trace_run(batch)
        for job in batch:
            if not job.cancelled:
                job.on_done(job)


def _spans(batch: Sequence[Job]) -> Iterator[tuple[Job, int, int]]:
    """Each job with its first row in the batch and the one after its last."""
    start = 0
    for job in batch:
        stop = start + len(job.features)
        yield job, start, stop
        start = stop


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))

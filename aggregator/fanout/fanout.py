"""Sending what waits to all shards together, and deciding how long to wait for whom."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import Context

from aggregator.coverage import Coverage, MissingReason, too_few
from aggregator.fanout.admission import Queue
from aggregator.fanout.batch import Batch, Job, JobAnswer
from aggregator.fanout.dispatch import Dispatcher
from aggregator.fanout.fleet import Fleet
from aggregator.fanout.gathering import Gathering
from aggregator.fanout.tracing import BatchTrace
from aggregator.fanout.work import Merge, Merging
from aggregator.metrics import AggregatorMetrics
from aggregator.policy import FanOutPolicy
from aggregator.results import Timings
from aggregator.served import ServedBundle
from aggregator.transport import Payload
from mach import tracing
from mach.errors import Unavailable
from mach.features import SparseBatch

__all__ = ["FanOut", "Featurize"]

_log = logging.getLogger(__name__)

#: Answers the jobs that need no shard; returns the others and a row for each of their queries.
Featurize = Callable[[list[Job]], tuple[list[Job], SparseBatch]]
#: The slot of a batch is freed when no more than this share of its messages is unanswered, so
#: that one slow shard does not idle the others.
_STRAGGLERS = 8
_SMOOTHING = 0.2


class FanOut:
    """Turns jobs into messages and answers into results, on one event loop.

    While ``max_in_flight`` batches are on their way, jobs wait; all that wait are sent
    together, one message a shard. So at low load a query is sent at once, and under load the
    batches grow until the shards keep up.
    """

    def __init__(
        self,
        fleet: Fleet,
        policy: FanOutPolicy,
        featurize: Featurize,
        merge: Merge,
        executor: Executor,
        metrics: AggregatorMetrics,
    ) -> None:
        self._fleet = fleet
        self._policy = policy
        self._featurize = featurize
        self._merge = merge
        self._executor = executor
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._queue = Queue(policy, metrics)
        self._gathering = Gathering(policy)
        self._dispatcher = Dispatcher(fleet, policy, metrics, self._advance)
        self._batches: set[Batch] = set()
        self._in_flight = 0
        self._merging = 0
        self._merge_seconds = 1.0  # a query's, smoothed; at first it is not known to be short
        self._scheduled = False
        self._closed = False
        # Batches are no one call's, so what is done for them runs in no call's context.
        self._context = Context()

    async def run(self, job: Job) -> JobAnswer:
        """Wait for the answer to a job.

        Raises:
            Overloaded: if it would wait too long.
            Unavailable: if too few repetitions answered.
            VersionMismatch: if that is because shards hold another bundle version.
            DeadlineExceeded: if its deadline passed while it waited.
            InvalidInput: if a text has too many features.
        """
        if self._closed:
            raise Unavailable("the aggregator is stopping")
        self._queue.push(job, busy=self._busy, idle=not self._batches)
        self._gathering.arrived(job.queued_at)
        if not self._scheduled and not self._busy:
            # Not at once: calls that the event loop has ready come along.
            self._schedule()
        answered = False
        try:
            answer = await job.future
            answered = True
            return answer
        except asyncio.CancelledError:
            self._abandon(job)
            raise
        finally:
            if job.batch is not None:
                self._queue.ended(self._loop.time() - job.batch.sent_at, answered=answered)

    def close(self) -> None:
        """Answer everything with an error."""
        self._closed = True
        stopping = Unavailable("the aggregator is stopping")
        self._queue.fail_all(stopping)
        for batch in list(self._batches):
            for job in batch.jobs:
                job.fail(stopping)
            self._close(batch)

    def max_rows(self, served: ServedBundle) -> int:
        """The most queries of a bundle that fit into a message to every shard, and its answer."""
        return self._fleet.max_rows(served.expected)

    @property
    def _busy(self) -> bool:
        return (
            self._in_flight >= self._policy.max_in_flight
            or self._merging >= 2 * self._policy.max_in_flight
        )

    # Sending

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self._flush, context=self._context)

    def _flush(self, was_due: float | None = None) -> None:
        if self._queue and not self._busy:
            if was_due is not None:
                self._gathering.woke(self._loop.time(), was_due)
            others = bool(self._batches) or self._merging > 0
            due = self._gathering.due(
                self._queue.rows, others=others, batch_seconds=self._queue.batch_seconds
            )
            if due > self._loop.time():
                self._loop.call_at(due, self._flush, due, context=self._context)
                return
        self._scheduled = False
        while self._queue and not self._busy:
            jobs = self._queue.take(self.max_rows, self._loop.time())
            if not jobs:
                continue
            try:
                self._send(jobs)
            except Exception as error:  # a defect of ours must not leave callers waiting
                _log.exception("a batch could not be sent")
                batches = {job.batch for job in jobs if job.batch is not None}
                for job in jobs:
                    job.fail(error)
                for batch in batches & self._batches:
                    self._close(batch)

    def _send(self, jobs: list[Job]) -> None:
        started = self._loop.time()
        trace = BatchTrace.begin(jobs, started)
        jobs, features = self._featurize(jobs)
        now = self._loop.time()
        if trace is not None:
            trace.featurized(started, now)
        if not jobs:
            if trace is not None:
                trace.close()
            return
        served = jobs[0].served
        payload = Payload(features, served.version, self._policy.encoding)
        batch = Batch(jobs, payload, now - started, now, trace)
        self._batches.add(batch)
        self._gathering.sent(len(batch))
        self._in_flight += 1
        self._metrics.batch_size.observe(len(batch))
        for job in jobs:
            self._metrics.queue_wait.observe(started - job.queued_at, tracing.exemplar(job.span))
        self._dispatcher.send(batch, now)
        self._advance(batch, now)

    # Deciding

    def _advance(self, batch: Batch, now: float) -> None:
        """Something came back, or nothing more will."""
        if batch.give_up_at == float("inf") and len(batch.rows) >= batch.quorum:
            taken = (now - batch.sent_at) * self._policy.straggler_factor
            batch.give_up_at = batch.sent_at + max(self._policy.straggler_seconds, taken)
        if batch.jobs and batch.is_complete:
            self._finish(batch, list(batch.jobs), now)
        elif batch.gave_up:
            self._finish(batch, [job for job in batch.jobs if self._is_enough(batch, job)], now)
        if batch.holds_slot and len(batch.messages) * _STRAGGLERS <= batch.num_messages:
            self._release(batch, now)
        self._settle(batch, now)

    def _settle(self, batch: Batch, now: float) -> None:
        """Close the batch if it is done, else set the timer for the next look at it."""
        if not batch.jobs and batch.holds_slot:
            self._release(batch, self._loop.time())  # a shard that hangs keeps nobody waiting
        if not batch.jobs and (not batch.messages or batch.judged):
            self._close(batch)
            return
        if batch not in self._batches:
            return
        at = min((job.deadline for job in batch.jobs), default=float("inf"))
        if batch.jobs and not batch.gave_up:
            at = min(at, batch.give_up_at, batch.hedge_at)
        if not batch.judged:
            at = min(at, batch.give_up_at, batch.suspect_at)
        if batch.timer is None or batch.timer.when() > at:
            if batch.timer is not None:
                batch.timer.cancel()
            batch.timer = self._loop.call_at(at, self._tick, batch, context=self._context)

    def _tick(self, batch: Batch) -> None:
        batch.timer = None
        now = self._loop.time() + 1e-4  # a timer may fire a little early
        batch.gave_up = now >= batch.give_up_at
        if now >= min(batch.hedge_at, batch.suspect_at) and not batch.gave_up:
            batch.hedge_at = float("inf")
            self._dispatcher.hedge(batch, now)
        if (batch.gave_up or now >= batch.suspect_at) and not batch.judged:
            batch.judged = True
            self._dispatcher.judge(batch, now)
        due = [job for job in batch.jobs if now >= job.deadline or self._is_enough(batch, job)]
        if due:
            self._finish(batch, due, now)
        self._settle(batch, now)

    @staticmethod
    def _is_enough(batch: Batch, job: Job) -> bool:
        """Whether a job is answered without the repetitions that are missing yet."""
        return batch.gave_up and len(batch.rows) >= job.minimum

    def _finish(self, batch: Batch, jobs: list[Job], now: float) -> None:
        """Answer these jobs from what has come back."""
        total = batch.served.manifest.num_repetitions
        missing = {
            repetition: batch.missing.get(repetition, MissingReason.TIMEOUT)
            for repetition in range(total)
            if repetition not in batch.rows
        }
        coverage = Coverage(len(batch.rows), total, missing)
        ready = []
        for job in jobs:
            batch.jobs.remove(job)
            if job.future.done():
                continue
            if coverage.answered < max(1, job.minimum):
                wait = max(1, int(self._queue.wait * 1e3))
                job.fail(too_few(coverage, job.minimum, wait))
            else:
                ready.append(job)
        if not ready:
            return
        self._metrics.fanout.observe(now - batch.sent_at, _exemplar(batch))
        self._merging += 1
        if batch.trace is not None:
            batch.trace.merging()
        merge = Merging(batch, ready, dict(batch.rows), coverage, now)
        if len(batch) * self._merge_seconds <= self._policy.inline_merge_seconds:
            merge.run(self._merge)
            self._merged(merge)
        else:
            self._executor.submit(self._merge_in_thread, merge)

    def _merge_in_thread(self, merge: Merging) -> None:
        merge.run(self._merge)
        self._loop.call_soon_threadsafe(self._merged, merge, context=self._context)

    def _merged(self, merge: Merging) -> None:
        batch, jobs, results = merge.batch, merge.jobs, merge.results
        merge_seconds = self._loop.time() - merge.arrived
        self._metrics.merge.observe(merge_seconds, _exemplar(batch))
        if batch.trace is not None:
            batch.trace.merged(jobs, merge.coverage, merge.arrived, merge.arrived + merge_seconds)
        self._merging -= 1
        self._merge_seconds += (merge.cpu_seconds / len(batch) - self._merge_seconds) * _SMOOTHING
        if isinstance(results, Exception):
            for job in jobs:
                job.fail(results)
        else:
            for job, found in zip(jobs, results, strict=True):
                self._metrics.covered(merge.coverage)
                job.resolve(
                    JobAnswer(
                        found,
                        Timings(
                            featurize=batch.featurize_seconds,
                            queue=batch.sent_at - batch.featurize_seconds - job.queued_at,
                            shards=merge.arrived - batch.sent_at,
                            merge=merge_seconds,
                        ),
                    )
                )
        if self._queue and not self._scheduled:
            self._schedule()

    # Letting go

    def _release(self, batch: Batch, now: float) -> None:
        batch.holds_slot = False
        self._in_flight -= 1
        self._queue.served(now - batch.sent_at)
        self._gathering.opened(now)
        if self._queue and not self._scheduled:
            self._schedule()

    def _close(self, batch: Batch) -> None:
        """Forget a batch; answers that have not come are not wanted any more."""
        if batch.timer is not None:
            batch.timer.cancel()
            batch.timer = None
        self._dispatcher.withdraw(batch)
        if batch.trace is not None and batch in self._batches:
            batch.trace.close()
        batch.jobs.clear()
        self._batches.discard(batch)
        if batch.holds_slot:
            self._release(batch, self._loop.time())

    def _abandon(self, job: Job) -> None:
        """The caller has gone."""
        batch = job.batch
        if batch is None or batch not in self._batches or job not in batch.jobs:
            return
        batch.jobs.remove(job)
        if not batch.jobs:
            self._close(batch)


def _exemplar(batch: Batch) -> dict[str, str] | None:
    return tracing.exemplar(batch.trace.span) if batch.trace is not None else None

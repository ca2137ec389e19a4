"""The queue in front of the shards: bounded, and closed to what could not be answered in time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from aggregator.fanout.batch import Job
from aggregator.metrics import AggregatorMetrics
from aggregator.policy import FanOutPolicy
from aggregator.served import ServedBundle
from mach.errors import DeadlineExceeded, Overloaded

__all__ = ["Queue"]

_SMOOTHING = 0.2
_ANSWER_SMOOTHING = 0.05  # answers come by the dozen
_DEVIATIONS = 2.0


class Queue:
    """Jobs that wait to be sent, first in, first out.

    The wait is estimated from how long batches have taken of late: where all slots are taken,
    those ahead must be served by as many slots as there are. From then on an answer takes as long
    as answers took of late, merge and the event loop's other work included, and twice their mean
    deviation to be safe, as TCP waits for acknowledgements (RFC 6298 takes four times). A job
    that would be answered after its deadline, or wait longer than the policy allows, is refused
    at once: work that nobody waits for any more is what makes an overload collapse.

    Attributes:
        rows: queries that wait.
        batch_seconds: how long batches have taken of late, from sent to answered.
    """

    def __init__(self, policy: FanOutPolicy, metrics: AggregatorMetrics) -> None:
        self.rows = 0
        self._policy = policy
        self._metrics = metrics
        self._jobs: deque[Job] = deque()
        self.batch_seconds = 0.0
        self._answer_seconds = 0.0
        self._deviation = 0.0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def served(self, seconds: float) -> None:
        """A batch left its slot, ``seconds`` after it took it."""
        self.batch_seconds += (seconds - self.batch_seconds) * _SMOOTHING

    def ended(self, seconds: float, *, answered: bool) -> None:
        """A call is over, ``seconds`` after its batch was sent.

        One that ended without an answer would have taken longer: if only those in time were
        counted, the later the others were the quicker answers would seem.
        """
        off = seconds - self._answer_seconds
        if not answered and off < 0:
            return
        self._answer_seconds += off * _ANSWER_SMOOTHING
        self._deviation += (abs(off) - self._deviation) * _ANSWER_SMOOTHING

    @property
    def wait(self) -> float:
        """Expected seconds until what arrives now is sent, if all slots are taken."""
        return self._wait(busy=True)

    def _wait(self, *, busy: bool) -> float:
        batches = busy + self.rows / self._policy.max_rows
        return self.batch_seconds * batches / self._policy.max_in_flight

    def push(self, job: Job, *, busy: bool, idle: bool) -> None:
        """Let a job wait.

        Args:
            job: what shall be sent.
            busy: whether all slots are taken, so that it must wait.
            idle: whether nothing is on its way. What comes first then is let in whatever its
                deadline: only from its answer can be known how long answers take now.

        Raises:
            Overloaded: if it should not.
        """
        wait = self._wait(busy=busy)
        if self.rows + len(job) > self._policy.max_queue:
            raise self._refuse("queue_full", "too many queries wait")
        if busy and wait > self._policy.max_queue_seconds:
            raise self._refuse("wait", f"the expected wait is {wait * 1e3:.0f} ms")
        if self.rows or not idle:
            answer = self._answer_seconds + _DEVIATIONS * self._deviation
            if job.queued_at + wait + answer > job.deadline:
                raise self._refuse(
                    "deadline",
                    f"the expected {(wait + answer) * 1e3:.0f} ms until the answer are more "
                    "than is left of the request's deadline",
                )
        self._jobs.append(job)
        self.rows += len(job)
        self._metrics.queue_depth.set(self.rows)

    def _refuse(self, reason: str, why: str) -> Overloaded:
        self._metrics.shed.labels(reason).inc()
        return Overloaded(f"overloaded: {why}", retry_after_ms=max(1, int(self.wait * 1e3)))

    def take(self, max_rows: Callable[[ServedBundle], int], now: float) -> list[Job]:
        """The jobs of the next batch: those of one bundle version that fit; may be none.

        Jobs that were cancelled, or whose time is up, are dropped.

        Args:
            max_rows: the most queries of a bundle that fit.
            now: loop time.
        """
        jobs: list[Job] = []
        rows = most = 0
        while self._jobs:
            job = self._jobs[0]
            alive = not job.future.done() and now < job.deadline
            if alive and jobs and (rows + len(job) > most or job.served is not jobs[0].served):
                break
            self._jobs.popleft()
            self.rows -= len(job)
            if alive:
                if not jobs:
                    most = max_rows(job.served)
                jobs.append(job)
                rows += len(job)
                continue
            self._metrics.dropped.labels("cancelled" if job.future.done() else "expired").inc()
            job.fail(DeadlineExceeded("the deadline passed while the request waited"))
        self._metrics.queue_depth.set(self.rows)
        return jobs

    def fail_all(self, error: Exception) -> None:
        """Answer all that wait with an error."""
        for job in self._jobs:
            job.fail(error)
        self._jobs.clear()
        self.rows = 0

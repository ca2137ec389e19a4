"""Queries on their way: a call's, those sent together, and one message to one shard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aggregator.coverage import MissingReason
from aggregator.fanout.endpoint import Endpoint
from aggregator.requests import Query, SearchOptions
from aggregator.results import SearchResult, Timings
from aggregator.served import ServedBundle
from aggregator.transport import Payload
from mach import tracing
from mach.merge import ProductSet
from mach.wire import EncodedRows

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from aggregator.fanout.tracing import BatchTrace

__all__ = ["Batch", "Job", "JobAnswer", "Message"]


@dataclass(frozen=True, slots=True)
class JobAnswer:
    """What became of a job."""

    results: list[SearchResult]
    timings: Timings


class Job:
    """The queries of one call, which share options and a deadline.

    Attributes:
        served: the bundle they are answered from.
        queries: text or features, checked.
        options: how they are searched.
        allowed: the products to choose from; None for all.
        minimum: repetitions the answer needs.
        deadline: when the answer is due, loop time.
        future: gets the answer.
        queued_at: when the job began to wait, loop time.
        first_query: position of its first query in a call of several; None in a call of one.
        first_row: its first row in the batch.
        batch: the batch it was sent in; None while it waits.
        span: of the call, if it is sampled.
    """

    __slots__ = (
        "allowed",
        "batch",
        "deadline",
        "first_query",
        "first_row",
        "future",
        "minimum",
        "options",
        "queries",
        "queued_at",
        "served",
        "span",
    )

    def __init__(
        self,
        served: ServedBundle,
        queries: list[Query],
        options: SearchOptions,
        allowed: ProductSet | None,
        minimum: int,
        deadline: float,
        first_query: int | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.served = served
        self.queries = queries
        self.options = options
        self.allowed = allowed
        self.minimum = minimum
        self.deadline = deadline
        self.future: asyncio.Future[JobAnswer] = loop.create_future()
        self.queued_at = loop.time()
        self.first_query = first_query
        self.first_row = 0
        self.batch: Batch | None = None
        self.span = tracing.sampled()

    def __len__(self) -> int:
        return len(self.queries)

    def field(self, index: int) -> str:
        """The request field that one of its texts came from."""
        if self.first_query is None:
            return "query.text"
        return f"queries[{self.first_query + index}].text"

    def resolve(self, answer: JobAnswer) -> None:
        """Answer, unless it was answered or cancelled."""
        if not self.future.done():
            self.future.set_result(answer)

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless it was answered or cancelled."""
        if not self.future.done():
            self.future.set_exception(error)


class Message:
    """One message to one endpoint and the repetitions it asks for.

    Attributes:
        batch: what it carries.
        endpoint: where it went.
        repetitions: what it asks for.
        sent_at: when, loop time.
        tried: the endpoints asked for these repetitions, this one included.
        is_hedge: whether another endpoint was asked first and had not answered.
        withdraw: takes it back.
        span: of it, if the batch is traced.
    """

    __slots__ = (
        "batch",
        "endpoint",
        "is_hedge",
        "repetitions",
        "sent_at",
        "span",
        "tried",
        "withdraw",
    )

    def __init__(
        self,
        batch: Batch,
        endpoint: Endpoint,
        repetitions: tuple[int, ...],
        sent_at: float,
        tried: frozenset[Endpoint],
        is_hedge: bool,
    ) -> None:
        self.batch = batch
        self.endpoint = endpoint
        self.repetitions = repetitions
        self.sent_at = sent_at
        self.tried = tried
        self.is_hedge = is_hedge
        self.withdraw: Callable[[], None] = lambda: None
        self.span: Span | None = None


class Batch:
    """Queries sent to all shards together, and what has come back.

    Attributes:
        served: the bundle all its jobs are answered from.
        jobs: those not answered yet.
        payload: the queries.
        featurize_seconds: what making them took.
        sent_at: when the first message went, loop time.
        messages: those not answered yet.
        num_messages: how many were sent at first.
        rows: the rows that came back, by repetition.
        missing: why a repetition will not come any more.
        quorum: repetitions after which the others can be told to be late.
        give_up_at: when those missing are late, loop time; infinite before the quorum.
        gave_up: whether answers are given without those missing.
        suspect_at: when those missing are late even if nobody has answered, loop time.
        judged: whether the late ones have been marked so.
        hedge_at: when slow ones are hedged, loop time.
        holds_slot: whether it counts as in flight.
        timer: the next look at it.
        trace: its spans, if one of its calls is sampled.
    """

    __slots__ = (
        "featurize_seconds",
        "gave_up",
        "give_up_at",
        "hedge_at",
        "holds_slot",
        "jobs",
        "judged",
        "messages",
        "missing",
        "num_messages",
        "payload",
        "quorum",
        "rows",
        "sent_at",
        "served",
        "suspect_at",
        "timer",
        "trace",
    )

    def __init__(
        self,
        jobs: list[Job],
        payload: Payload,
        featurize_seconds: float,
        sent_at: float,
        trace: BatchTrace | None = None,
    ) -> None:
        self.served = jobs[0].served
        self.jobs = jobs
        self.payload = payload
        self.featurize_seconds = featurize_seconds
        self.sent_at = sent_at
        self.missing: dict[int, MissingReason] = {}
        self.messages: set[Message] = set()
        self.num_messages = 0
        self.rows: dict[int, EncodedRows] = {}
        self.quorum = 0
        self.give_up_at = float("inf")
        self.gave_up = False
        self.suspect_at = float("inf")
        self.judged = False
        self.hedge_at = float("inf")
        self.holds_slot = True
        self.timer: asyncio.TimerHandle | None = None
        self.trace = trace
        row = 0
        for job in jobs:
            job.batch, job.first_row = self, row
            row += len(job)

    def __len__(self) -> int:
        return len(self.payload.features)

    @property
    def deadline(self) -> float:
        """When the last of the jobs not answered yet is due."""
        return max((job.deadline for job in self.jobs), default=self.sent_at)

    @property
    def is_complete(self) -> bool:
        """Whether nothing more will come."""
        return len(self.rows) + len(self.missing) >= self.served.manifest.num_repetitions

    def lacking(self, message: Message) -> set[int]:
        """The repetitions of a message that neither came nor are asked of anyone else."""
        lacking = {r for r in message.repetitions if r not in self.rows}
        if lacking:
            for other in self.messages:
                if other is not message:
                    lacking.difference_update(other.repetitions)
        return lacking

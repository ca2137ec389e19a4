"""Messages: which endpoint gets which, what comes back, and whom to ask next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial

from aggregator.answers import read_answer
from aggregator.coverage import MissingReason, reason_of
from aggregator.fanout.batch import Batch, Message
from aggregator.fanout.endpoint import Endpoint
from aggregator.fanout.fleet import Fleet
from aggregator.fanout.hedging import Hedging
from aggregator.metrics import AggregatorMetrics
from aggregator.policy import FanOutPolicy
from mach import tracing
from mach.errors import MachError
from mach.v1 import shard_pb2
from mach.wire import EncodedRows

__all__ = ["Dispatcher"]

_log = logging.getLogger(__name__)


class Dispatcher:
    """Sends a batch's messages, collects the rows, and asks other replicas where one fails.

    It keeps account of how endpoints behave; how long a batch waits is decided elsewhere.
    """

    def __init__(
        self,
        fleet: Fleet,
        policy: FanOutPolicy,
        metrics: AggregatorMetrics,
        advance: Callable[[Batch, float], None],
    ) -> None:
        """Use the endpoints of a fleet.

        Args:
            fleet: the endpoints.
            policy: how much load an endpoint may have, and how much is hedged.
            metrics: where to count.
            advance: called with a batch and the loop time when something came back.
        """
        self._fleet = fleet
        self._policy = policy
        self._metrics = metrics
        self._advance = advance
        self._loop = asyncio.get_running_loop()
        self._hedging = Hedging(policy)

    def send(self, batch: Batch, now: float) -> None:
        """Ask for every repetition that can be had; ejected endpoints only if the minimum of a
        job calls for them."""
        expected = batch.served.expected
        routes = self._fleet.routes(expected)
        batch.missing.update(routes.missing)
        needed = max(job.minimum for job in batch.jobs)
        chosen: dict[Endpoint, list[int]] = {}
        for route in routes.ready:
            if (endpoint := self._choose(route.endpoints, now)) is not None:
                chosen.setdefault(endpoint, []).extend(route.repetitions)
            else:
                batch.missing.update(dict.fromkeys(route.repetitions, MissingReason.OVERLOADED))
        for route in routes.fallback:
            endpoint = self._choose(route.endpoints, now) if routes.num_ready < needed else None
            if endpoint is not None:
                chosen.setdefault(endpoint, []).extend(route.repetitions)
            else:
                reason = route.endpoints[0].reason
                batch.missing.update(dict.fromkeys(route.repetitions, reason))
        wanted = sum(map(len, chosen.values()))
        batch.quorum = max(self._policy.minimum(expected.num_repetitions), (wanted + 1) // 2)
        batch.num_messages = len(chosen)
        batch.suspect_at = now + self._hedging.late
        if routes.has_replicas:
            batch.hedge_at = now + self._hedging.delay
        deadline = batch.deadline
        for endpoint, repetitions in chosen.items():
            self._message(batch, endpoint, tuple(sorted(repetitions)), now, deadline)
        self._hedging.sent(len(chosen))

    def hedge(self, batch: Batch, now: float) -> None:
        """Ask other replicas for what has not come, where there are any."""
        for message in list(batch.messages):
            if self._has_another(message) and batch.lacking(message):
                sent = self._again(message, now, is_hedge=True, costs=True)
                self._metrics.hedges.labels("sent" if sent else "denied").inc()

    def _has_another(self, message: Message) -> bool:
        """Whether an endpoint in use that was not tried holds some of what a message asks for."""
        return any(
            not message.tried.issuperset(route.endpoints)
            and not set(route.repetitions).isdisjoint(message.repetitions)
            for route in self._fleet.routes(message.batch.served.expected).ready
        )

    def judge(self, batch: Batch, now: float) -> None:
        """Mark the endpoints that have not answered as late."""
        for message in batch.messages:
            seconds = now - message.sent_at
            if not message.is_hedge or seconds >= self._policy.straggler_seconds:
                self._count(message, "late", seconds)
                self._lapse(
                    message.endpoint, seconds, MissingReason.TIMEOUT, "is late", wrong=False
                )

    @staticmethod
    def withdraw(batch: Batch) -> None:
        """Take back what has not been answered."""
        for message in batch.messages:
            message.endpoint.calls -= 1
            message.withdraw()
            _end(message, "withdrawn")
        batch.messages.clear()

    def _choose(
        self, endpoints: Iterable[Endpoint], now: float, tried: frozenset[Endpoint] = frozenset()
    ) -> Endpoint | None:
        """The least loaded endpoint that is not overrun."""
        best, least = None, float("inf")
        for endpoint in endpoints:
            if endpoint.calls < self._policy.max_calls and endpoint not in tried:
                load = endpoint.load(now)
                if load < least:
                    best, least = endpoint, load
        return best

    def _message(
        self,
        batch: Batch,
        endpoint: Endpoint,
        repetitions: tuple[int, ...],
        now: float,
        deadline: float,
        tried: frozenset[Endpoint] = frozenset(),
        is_hedge: bool = False,
    ) -> None:
        message = Message(batch, endpoint, repetitions, now, tried | {endpoint}, is_hedge)
        headers: tracing.Headers = ()
        if batch.trace is not None:
            is_retry = bool(tried) and not is_hedge
            message.span = batch.trace.message(
                endpoint.address, repetitions, is_hedge=is_hedge, is_retry=is_retry, at=now
            )
            headers = batch.trace.headers(message.span)
        endpoint.calls += 1
        endpoint.asked = now
        batch.messages.add(message)
        message.withdraw = endpoint.transport.predict(
            batch.payload,
            () if repetitions == endpoint.repetitions else repetitions,
            max(0.001, deadline - now),
            partial(self._answered, message),
            headers,
        )

    def _again(self, message: Message, now: float, *, is_hedge: bool, costs: bool) -> bool:
        """Ask other replicas for what a message has not brought.

        Args:
            message: what was sent.
            now: loop time.
            is_hedge: whether the message may still be answered.
            costs: whether the budget for extra load must allow it.

        Returns:
            Whether all of it has been asked for again.
        """
        batch = message.batch
        lacking = batch.lacking(message)
        found: dict[Endpoint, list[int]] = {}
        for route in self._fleet.routes(batch.served.expected).ready:
            if shared := lacking.intersection(route.repetitions):
                endpoint = self._choose(route.endpoints, now, message.tried)
                if endpoint is None:
                    return False
                found.setdefault(endpoint, []).extend(shared)
                lacking -= shared
        if lacking or not found or batch.deadline <= now:
            return False
        if costs and not self._hedging.spend(len(found)):
            return False
        for endpoint, repetitions in found.items():
            self._message(
                batch,
                endpoint,
                tuple(sorted(repetitions)),
                now,
                batch.deadline,
                message.tried,
                is_hedge,
            )
        return True

    def _answered(self, message: Message, outcome: shard_pb2.PredictResponse | MachError) -> None:
        batch, endpoint = message.batch, message.endpoint
        now = self._loop.time()
        seconds = now - message.sent_at
        endpoint.calls -= 1
        batch.messages.discard(message)
        rows: dict[int, EncodedRows] = {}
        if not isinstance(outcome, MachError):
            try:
                rows = read_answer(
                    outcome,
                    bundle_version=batch.payload.bundle_version,
                    num_queries=len(batch),
                    num_buckets=batch.served.manifest.num_buckets,
                    encoding=batch.payload.encoding,
                    asked=message.repetitions,
                )
            except MachError as error:
                outcome = error
        if isinstance(outcome, MachError):
            self._failed(message, outcome, seconds, now)
        else:
            endpoint.answered(seconds, now)
            self._count(message, "ok", seconds)
            _end(message, "ok", now)
            self._hedging.answered(seconds)
            if message.is_hedge and not rows.keys() <= batch.rows.keys():
                self._metrics.hedges.labels("won").inc()
            for repetition, found in rows.items():
                batch.rows.setdefault(repetition, found)
                batch.missing.pop(repetition, None)
        self._advance(batch, now)

    def _failed(self, message: Message, error: MachError, seconds: float, now: float) -> None:
        batch, endpoint = message.batch, message.endpoint
        reason = reason_of(error)
        self._count(message, reason.name.lower(), seconds)
        _end(message, reason.name.lower(), now)
        if reason is MissingReason.VERSION_MISMATCH:
            endpoint.ask_again()
        elif reason is MissingReason.UNAVAILABLE:
            self._lapse(endpoint, seconds, reason, "fails", wrong=True)
        elif reason is MissingReason.INVALID_ANSWER:
            _log.warning("shard %s gave an invalid answer: %s", endpoint.address, error)
            self._lapse(endpoint, seconds, reason, "gives invalid answers", wrong=True)
        # A shard that sheds load must not be the cause of more, but within the budget.
        costs = reason is MissingReason.OVERLOADED
        if reason is not MissingReason.TIMEOUT and self._again(
            message, now, is_hedge=False, costs=costs
        ):
            self._metrics.retries.inc()
        batch.missing.update(dict.fromkeys(batch.lacking(message), reason))

    def _count(self, message: Message, outcome: str, seconds: float) -> None:
        self._metrics.rpc(message.repetitions, outcome, seconds, tracing.exemplar(message.span))

    def _lapse(
        self, endpoint: Endpoint, seconds: float, reason: MissingReason, what: str, *, wrong: bool
    ) -> None:
        endpoint.reason = reason
        if endpoint.lapsed(seconds) and self._fleet.eject(endpoint, what, wrong=wrong):
            self._metrics.ejections.inc()


def _end(message: Message, outcome: str, now: float | None = None) -> None:
    if message.span is not None and message.batch.trace is not None:
        message.batch.trace.message_ended(message.span, outcome, now)

"""Sending requests: as fast as answers come (closed loop), or at a fixed rate (open loop)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from mach.client.calls import make_options
from mach.client.connection import token_metadata
from mach.direct import DIRECT, is_this_machine
from mach.errors import ConfigError, InvalidInput
from mach.loadtest.cpu import CpuMeter, spent
from mach.loadtest.report import UNSENT, LoadReport, Outcomes
from mach.tls import ClientTls, Tls
from mach.v1 import search_pb2, search_pb2_grpc

__all__ = ["LoadPlan", "run_load"]

#: Requests in flight beyond which an open loop counts new ones as failed without sending them:
#: a fleet that far behind has lost, and the generator must not run out of memory.
_MOST_IN_FLIGHT = 20_000
#: How long after its end an open loop still sends what was due before it; then it gives up.
_GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class LoadPlan:
    """What to send.

    Attributes:
        texts: queries, used in turn.
        concurrency: closed loop: requests in flight; or None.
        rate: open loop: requests a second, arriving as a Poisson process; or None.
        seconds: length of the measurement.
        warm_up_seconds: sent before it and not counted.
        k: products a query.
        timeout: seconds each request may take.
        connections: gRPC channels to spread requests over.
        seed: of the arrival times.
    """

    texts: Sequence[str]
    concurrency: int | None = None
    rate: float | None = None
    seconds: float = 10.0
    warm_up_seconds: float = 2.0
    k: int = 10
    timeout: float = 1.0
    connections: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise InvalidInput("concurrency", "give either a concurrency or a rate")
        if not self.texts:
            raise InvalidInput("texts", "there is no query to send")
        numbers = (self.concurrency, self.rate, self.seconds, self.timeout, self.connections)
        if not all(number is None or number > 0 for number in numbers):
            raise InvalidInput("seconds", "and rate, concurrency, timeout must be above 0")


class _Sender:
    """Requests prepared once, sent over several channels."""

    def __init__(
        self, plan: LoadPlan, channels: Sequence[grpc.aio.Channel], token: str | None
    ) -> None:
        self._plan = plan
        self._metadata = token_metadata(token)()
        self._calls = [search_pb2_grpc.SearchServiceStub(channel).Search for channel in channels]
        options = make_options(plan.k, 0, False, False, "", "", (), ())
        self._requests = [
            search_pb2.SearchRequest(query=search_pb2.Query(text=text), options=options)
            for text in plan.texts
        ]
        self._next = 0
        self.outcomes = Outcomes()
        self.counting = False
        self.in_flight = 0

    async def send(self, due: float) -> None:
        """Send one request that was due at ``due`` and note what became of it."""
        number, self._next = self._next, self._next + 1
        call = self._calls[number % len(self._calls)]
        self.in_flight += 1
        if self.counting and self._plan.rate is not None:
            self.outcomes.late.append(time.perf_counter() - due)
        try:
            answer = await call(
                self._requests[number % len(self._requests)],
                timeout=self._plan.timeout,
                metadata=self._metadata,
            )
        except grpc.aio.AioRpcError as error:
            if self.counting:
                self.outcomes.statuses[error.code().name] += 1
            return
        finally:
            self.in_flight -= 1
        if self.counting:
            now = time.perf_counter()
            coverage = answer.result.coverage
            self.outcomes.answered(now - due, now, coverage.answered / max(1, coverage.total))

    async def closed_loop(self, until: float) -> None:
        """Keep ``concurrency`` requests in flight."""

        async def worker() -> None:
            while (now := time.perf_counter()) < until:
                await self.send(now)

        await asyncio.gather(*(worker() for _ in range(self._plan.concurrency or 1)))

    async def open_loop(self, until: float) -> None:
        """Send at Poisson times, whether or not answers come."""
        rng = random.Random(self._plan.seed)
        rate = self._plan.rate or 1.0
        tasks: set[asyncio.Task[None]] = set()
        due = time.perf_counter()
        behind = 0
        while (due := due + rng.expovariate(rate)) < until:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            else:
                behind += 1
                if behind % 64 == 0:
                    await asyncio.sleep(0)  # let answers in before sending on
                if time.perf_counter() > until + _GRACE_SECONDS:
                    self._leave_out(1 + round((until - due) * rate))
                    break
            if self.in_flight >= _MOST_IN_FLIGHT:
                self._leave_out(1)
                continue
            task = asyncio.create_task(self.send(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    def _leave_out(self, requests: int) -> None:
        if self.counting:
            self.outcomes.statuses[UNSENT] += requests


async def run_load(
    address: str,
    plan: LoadPlan,
    *,
    cpu: CpuMeter | None = None,
    on_progress: Callable[[float, Outcomes], None] | None = None,
    tls: Tls | None = None,
    token: str | None = None,
) -> LoadReport:
    """Put load on the fleet at ``address`` and measure.

    Args:
        address: HOST:PORT of an aggregator.
        plan: what to send.
        cpu: read at the start and the end of the measurement.
        on_progress: called about twice a second with the seconds gone and what came so far.
        tls: certificates; plain text where not given.
        token: a bearer token to send.

    Raises:
        ConfigError: if a certificate file cannot be used, or the CPU not be read at the start.
        InvalidInput: if the token is not one, or k not a number that can be sent.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.use_local_subchannel_pool", 1),  # else equal channels share a connection
    ]
    if is_this_machine(address):
        options += DIRECT
    if tls is None:
        channels = [grpc.aio.insecure_channel(address, options) for _ in range(plan.connections)]
    else:
        secure = ClientTls(tls)
        options += secure.options
        channels = [
            grpc.aio.secure_channel(address, secure.credentials(), options)
            for _ in range(plan.connections)
        ]
    sender = _Sender(plan, channels, token)
    loop = sender.closed_loop if plan.concurrency else sender.open_loop

    async def report(start: float) -> None:
        while on_progress:
            on_progress(time.perf_counter() - start, sender.outcomes)
            await asyncio.sleep(0.5)

    try:
        if plan.warm_up_seconds > 0:
            await loop(time.perf_counter() + plan.warm_up_seconds)
        before = await asyncio.to_thread(cpu.read) if cpu else None
        sender.counting = True
        start = time.perf_counter()
        progress = asyncio.create_task(report(start))
        await loop(start + plan.seconds)
        progress.cancel()
        used = None
        if cpu is not None and before is not None:
            with contextlib.suppress(ConfigError):  # what was measured stands without it
                used = spent(before, await asyncio.to_thread(cpu.read))
    finally:
        for channel in channels:
            await channel.close()
    outcomes = sender.outcomes
    last = outcomes.finished[-1] if outcomes.finished else start
    seconds = max(plan.seconds, last - start)
    if plan.concurrency:
        return LoadReport.of("closed", outcomes, seconds, used)
    return LoadReport.of("open", outcomes, seconds, used, offered_seconds=plan.seconds)

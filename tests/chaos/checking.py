"""Every answer of a test under fire is compared with what it had to be."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mach.bundle import Bundle
from mach.client import AsyncMachClient, SearchResult
from mach.errors import MachError
from tests.e2e.reference import Reference

K = 7


class Oracle:
    """What any subset of the repetitions must answer, worked out once each."""

    def __init__(self, bundle: Bundle) -> None:
        self._reference = Reference(bundle)
        self._known: dict[tuple[str, tuple[int, ...]], tuple[list[str], list[float]]] = {}
        self._all = frozenset(range(bundle.manifest.num_repetitions))
        self.queries: list[str] = bundle.catalog.table["title"].to_pylist()[::5]
        self.version = bundle.version

    def check(self, query: str, result: SearchResult) -> None:
        """Products, order and scores are those of the repetitions that it says it rests on."""
        assert result.bundle_version == self.version
        answered = tuple(sorted(self._all - result.coverage.missing.keys()))
        assert len(answered) == result.coverage.answered > 0
        key = query, answered
        if key not in self._known:
            self._known[key] = self._reference.top(query, K, answered)
        ids, scores = self._known[key]
        assert [product.product_id for product in result.products] == ids, (query, answered)
        for product, score in zip(result.products, scores, strict=True):
            assert abs(product.score - score) <= 1e-5 * abs(score), (query, answered)


@dataclass
class Seen:
    """What came of some searches.

    Attributes:
        answers: how many, by the repetitions that were missing.
        reasons: why they were, by repetition and reason.
        errors: those that failed.
        longest: seconds the slowest took.
    """

    answers: Counter[tuple[int, ...]] = field(default_factory=Counter)
    reasons: Counter[tuple[int, str]] = field(default_factory=Counter)
    errors: list[MachError] = field(default_factory=list)
    longest: float = 0.0

    @property
    def complete(self) -> int:
        """Answers that lacked nothing."""
        return self.answers[()]

    @property
    def degraded(self) -> int:
        """Answers that lacked something."""
        return self.answers.total() - self.complete


class Load:
    """Searches that go on in the background, each checked; an async context manager.

    Attributes:
        seen: what has come of them since the last :meth:`fresh`.
        errors: those that failed since the start.
    """

    def __init__(
        self, address: str, oracle: Oracle, *, concurrency: int = 4, timeout: float = 5.0
    ) -> None:
        self.seen = Seen()
        self.errors: list[MachError] = []
        self._client = AsyncMachClient(address, timeout=timeout)
        self._oracle = oracle
        self._concurrency = concurrency
        self._tasks: list[asyncio.Task[None]] = []

    def fresh(self) -> Seen:
        """Count anew; returns what was counted."""
        seen, self.seen = self.seen, Seen()
        return seen

    async def until(self, condition: object, seconds: float = 20.0) -> None:
        """Wait for ``condition()``; an answer that was wrong fails the test here."""
        end = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            for task in self._tasks:
                if task.done():
                    task.result()
            assert time.monotonic() < end, f"it did not happen in {seconds} s: {self.seen}"
            await asyncio.sleep(0.02)

    async def _search_on(self, queries: Sequence[str]) -> None:
        while True:
            for query in queries:
                seen, start = self.seen, time.monotonic()
                try:
                    result = await self._client.search(query, K)
                except MachError as error:
                    seen.errors.append(error)
                    self.errors.append(error)
                    await asyncio.sleep(0.01)
                else:
                    self._oracle.check(query, result)
                    missing = result.coverage.missing
                    seen.answers[tuple(sorted(missing))] += 1
                    seen.reasons.update(missing.items())
                seen.longest = max(seen.longest, time.monotonic() - start)

    async def __aenter__(self) -> Load:
        queries = self._oracle.queries
        self._tasks = [
            asyncio.create_task(self._search_on(queries[number:] + queries[:number]))
            for number in range(self._concurrency)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()
        for outcome in outcomes:
            if not isinstance(outcome, asyncio.CancelledError):
                raise outcome  # type: ignore[misc]


def resident_mb(pid: int) -> float:
    """Memory that a process holds for itself, 10^6 bytes; what it maps from files left out."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.split()[0]) * 1024 / 1e6
    raise AssertionError(f"no process {pid}")

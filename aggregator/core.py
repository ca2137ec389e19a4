"""Search over a fleet, free of any transport: check, wait, fan out, merge, look up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from aggregator.coverage import Coverage
from aggregator.fanout import FanOut, Fleet, Job, JobAnswer, Target
from aggregator.fanout.fleet import STANDINGS
from aggregator.fanout.targets import Resolve, resolve_name
from aggregator.featurizing import featurize_jobs
from aggregator.merging import merge_jobs
from aggregator.metrics import AggregatorMetrics
from aggregator.policy import FanOutPolicy, Limits
from aggregator.requests import Query, SearchOptions
from aggregator.results import SearchAnswer, SearchResult, Timings
from aggregator.served import Expected, ServedBundle
from aggregator.transport import ShardTransport
from mach.errors import VersionMismatch, VersionNotFound
from mach.features import SparseBatch
from mach.wire import EncodedRows

__all__ = ["Aggregator", "Bundles"]


class Bundles(Protocol):
    """The bundles of a process, such as :class:`mach.serving.BundleHost`."""

    @property
    def active(self) -> ServedBundle:
        """The one used where none is named; ``Unavailable`` while there is none."""

    @property
    def versions(self) -> list[str]:
        """The versions loaded, the active one first."""

    def get(self, version: str) -> ServedBundle:
        """The bundle of a version that is loaded."""


class Aggregator:
    """Answers searches from a fleet of shards.

    A search keeps the bundle it began with, so a switch never mixes versions in one answer.

    Attributes:
        bundles: the bundles loaded.
        limits: what requests may ask for.
        fleet: the shards.
    """

    def __init__(
        self,
        bundles: Bundles,
        targets: Iterable[Target],
        connect: Callable[[str, str], ShardTransport],
        *,
        policy: FanOutPolicy,
        limits: Limits,
        metrics: AggregatorMetrics,
        merge_threads: int = 1,
        on_ready: Callable[[bool], None] = lambda _: None,
        resolve: Resolve = resolve_name,
    ) -> None:
        """Call it on the event loop; nothing is connected before :meth:`start`.

        Args:
            bundles: the bundles loaded; call :meth:`bundles_changed` when they change.
            targets: the shards.
            connect: makes a transport for an address, see :class:`Fleet`.
            policy: how queries are sent and answers waited for.
            limits: what requests may ask for.
            metrics: where to count.
            merge_threads: threads that merge.
            on_ready: told whether enough repetitions can be asked, each time that changes.
            resolve: looks up names.
        """
        self.bundles = bundles
        self.limits = limits
        self.fleet = Fleet(
            targets,
            connect,
            policy,
            resolve=resolve,
            on_change=self._fleet_changed,
        )
        self._policy = policy
        self._metrics = metrics
        self._on_ready = on_ready
        self._was_ready = False
        self._executor = ThreadPoolExecutor(merge_threads, thread_name_prefix="merge")
        # A long filter over a large catalog takes a second: merges do not wait for that.
        self._filtering = ThreadPoolExecutor(1, thread_name_prefix="filter")
        self._fan_out = FanOut(
            self.fleet,
            policy,
            partial(featurize_jobs, limits=limits),
            self._merge,
            self._executor,
            metrics,
        )
        self.bundles_changed()

    async def start(self) -> None:
        """Begin to connect to the shards; returns at once, ready or not."""
        await self.fleet.start()

    async def close(self) -> None:
        """Fail what has not been answered and close all connections."""
        self._fan_out.close()
        await self.fleet.close()
        self._filtering.shutdown(wait=False, cancel_futures=True)
        await asyncio.get_running_loop().run_in_executor(None, self._executor.shutdown)

    @property
    def ready(self) -> bool:
        """Whether enough repetitions can be asked for an answer by default."""
        if not self.bundles.versions:
            return False
        expected = self.bundles.active.expected
        return self.fleet.routes(expected).num_ready >= self._minimum(expected)

    def _minimum(self, expected: Expected) -> int:
        return self._policy.minimum(expected.num_repetitions)

    def bundle(self, version: str) -> ServedBundle:
        """What answers a request that names ``version``, or none ("").

        Raises:
            VersionNotFound: if it is not loaded.
            Unavailable: while none is loaded.
        """
        active = self.bundles.active
        if version and version not in self.bundles.versions:
            raise VersionNotFound(f"bundle version {version[:80]} is not served here")
        return self.bundles.get(version) if version else active

    async def check_shards(self, served: ServedBundle) -> None:
        """Make sure that a bundle can become the active one without loss.

        Raises:
            VersionMismatch: if fewer of its repetitions could be asked than of those of the
                bundle active now, in proportion, or too few for an answer.
        """
        await self.fleet.refresh()
        active, expected = self.bundles.active.expected, served.expected
        found = self.fleet.routes(expected).num_ready
        share = self.fleet.routes(active).num_ready / active.num_repetitions
        needed = max(self._minimum(expected), math.ceil(share * expected.num_repetitions - 1e-9))
        if found < needed:
            raise VersionMismatch(
                f"bundle_version: the shards hold {found} of the {expected.num_repetitions} "
                f"repetitions of {served.version}, {needed} are needed; load it on them first"
            )

    async def search(
        self,
        served: ServedBundle,
        queries: Sequence[Query],
        options: SearchOptions,
        seconds: float,
        *,
        single: bool,
    ) -> SearchAnswer:
        """The best products for each query.

        Args:
            served: what answers; see :meth:`bundle`.
            queries: text or features, at least one, each checked
                (:func:`aggregator.requests.read_query`).
            options: how to search.
            seconds: within which the shards must have answered.
            single: whether the request is one query rather than a batch; for messages.

        Raises:
            InvalidInput: if an option is out of range.
            MachError: see :meth:`FanOut.run`.
        """
        options.check(self.limits, served.manifest.num_repetitions)
        deadline = asyncio.get_running_loop().time() + seconds
        allowed = None
        if options.restricts and (allowed := served.restrictions.known(options)) is None:
            allowed = await asyncio.get_running_loop().run_in_executor(
                self._filtering, served.restrictions.product_set, options
            )
        minimum = options.minimum_repetitions or self._minimum(served.expected)
        size = self._fan_out.max_rows(served)
        jobs = [
            Job(
                served,
                list(queries[start : start + size]),
                options,
                allowed,
                minimum,
                deadline,
                None if single else start,
            )
            for start in range(0, len(queries), size)
        ]
        in_flight = self._metrics.queries_in_flight
        in_flight.inc(len(queries))
        try:
            answers = await self._run(jobs)
        finally:
            in_flight.dec(len(queries))
        results = [result for answer in answers for result in answer.results]
        return SearchAnswer(results, served.version, _longest(answers))

    async def _run(self, jobs: list[Job]) -> list[JobAnswer]:
        if len(jobs) == 1:
            return [await self._fan_out.run(jobs[0])]
        tasks = [asyncio.ensure_future(self._fan_out.run(job)) for job in jobs]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def _merge(
        self,
        jobs: list[Job],
        features: SparseBatch,
        rows: dict[int, EncodedRows],
        coverage: Coverage,
    ) -> list[list[SearchResult]]:
        results, stats = merge_jobs(jobs, features, rows, self._policy.encoding, coverage)
        if stats.queries:
            self._metrics.candidates.observe(stats.candidates / stats.queries)
        return results

    def bundles_changed(self) -> None:
        """Another bundle is active, or on standby."""
        self._metrics.show_bundles(self.bundles.versions)
        if self.bundles.versions:
            expected = self.bundles.active.expected
            self._metrics.repetitions.set(expected.num_repetitions)
            self.fleet.expect(expected)

    def _fleet_changed(self) -> None:
        if not self.bundles.versions:
            return
        expected, metrics = self.bundles.active.expected, self._metrics
        routes = self.fleet.routes(expected)
        metrics.repetitions_ready.set(routes.num_ready)
        counts = [0] * expected.num_repetitions
        for route in routes.ready:
            for repetition in route.repetitions:
                counts[repetition] = len(route.endpoints)
        metrics.show_repetitions(counts)
        states = [self.fleet.standing(endpoint)[0] for endpoint in self.fleet.endpoints.values()]
        for state in STANDINGS:
            metrics.endpoints.labels(state).set(states.count(state))
        if self.ready != self._was_ready:
            self._was_ready = self.ready
            self._on_ready(self.ready)


def _longest(answers: list[JobAnswer]) -> Timings:
    """Parts of a call run side by side: the slowest of each step."""
    if len(answers) == 1:
        return answers[0].timings
    timings = [answer.timings for answer in answers]
    return Timings(
        featurize=max(t.featurize for t in timings),
        queue=max(t.queue for t in timings),
        shards=max(t.shards for t in timings),
        merge=max(t.merge for t in timings),
    )

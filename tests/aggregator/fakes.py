"""Shards that do as they are told, and aggregators over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from aggregator.core import Aggregator
from aggregator.fanout import Target
from aggregator.metrics import AggregatorMetrics
from aggregator.policy import FanOutPolicy, Limits
from aggregator.served import ServedBundle
from aggregator.transport import InProcessTransport, Payload, ShardDescription
from mach.errors import MachError, Unavailable
from mach.inference import LoadedBundle
from mach.v1 import shard_pb2

Answer = shard_pb2.PredictResponse


class FakeShard:
    """Answers as a shard would, unless told otherwise.

    Attributes:
        delay: seconds before an answer; None never answers.
        error: answered instead.
        spoil: changes an answer before it is sent.
        describe_error: answered to describe(), as by a shard that is away.
        describe_delay: seconds describe() takes; None for ever.
        versions: the versions it says it holds, where others than it does.
        held: the repetitions it says it holds, where others than it does.
        sizes: rows of each message it got.
        asked: repetitions of each message it got.
        withdrawn: messages that were taken back.
    """

    def __init__(self, loaded: LoadedBundle, address: str) -> None:
        self._inner = InProcessTransport(loaded, address=address)
        self._by_version = {loaded.version: self._inner}
        self.address = address
        self.on_broken: Callable[[str], None] = lambda _: None
        self.delay: float | None = 0.0
        self.error: MachError | None = None
        self.spoil: Callable[[Answer], None] = lambda _: None
        self.describe_error: MachError | None = None
        self.describe_delay: float | None = 0.0
        self.versions: tuple[str, ...] = (loaded.version,)
        self.held = loaded.repetitions
        self.max_batch_size = 256
        self.sizes: list[int] = []
        self.asked: list[tuple[int, ...]] = []
        self.withdrawn = 0
        self.describes = 0
        self.closed = False

    async def describe(self, seconds: float) -> ShardDescription:
        self.describes += 1
        if self.describe_delay is None or self.describe_delay > seconds:
            await asyncio.sleep(seconds)
            raise Unavailable("no answer") if self.describe_error else _deadline()
        await asyncio.sleep(self.describe_delay)
        if self.describe_error is not None:
            raise self.describe_error
        inner = await self._inner.describe(seconds)
        return ShardDescription(
            self.versions,
            self.held,
            inner.num_buckets,
            inner.num_features,
            inner.provider,
            self.max_batch_size,
        )

    def predict(self, payload: Payload, repetitions, seconds, done, trace=()):
        self.sizes.append(len(payload.features))
        self.asked.append(repetitions)
        loop = asyncio.get_running_loop()
        answer = self.error
        if answer is None:
            inner = self._by_version.get(payload.bundle_version, self._inner)
            answer = inner._run(payload, repetitions)
            self.spoil(answer)
        timer = None if self.delay is None else loop.call_later(self.delay, done, answer)

        def withdraw() -> None:
            self.withdrawn += 1
            if timer is not None:
                timer.cancel()

        return withdraw

    def hold(self, loaded: LoadedBundle) -> None:
        """Hold another version on standby."""
        self._by_version[loaded.version] = InProcessTransport(loaded, address=self.address)
        self.versions = (*self.versions, loaded.version)

    def break_off(self) -> None:
        """Lose the connection."""
        self.on_broken("connection reset")

    async def close(self) -> None:
        self.closed = True
        for inner in self._by_version.values():
            await inner.close()


def _deadline() -> MachError:
    from mach.errors import DeadlineExceeded

    return DeadlineExceeded("no answer")


class Bundles:
    """What a :class:`mach.serving.bundles.BundleHost` offers to the core."""

    def __init__(self, *loaded: ServedBundle) -> None:
        self.loaded = list(loaded)

    @property
    def active(self) -> ServedBundle:
        if not self.loaded:
            raise Unavailable("the bundle is still being loaded")
        return self.loaded[0]

    @property
    def versions(self) -> list[str]:
        return [served.version for served in self.loaded]

    def get(self, version: str) -> ServedBundle:
        return next(served for served in self.loaded if served.version == version)


class FakeFleet:
    """An aggregator over fake shards; ``shards[address]`` tells one what to do."""

    def __init__(self, served: ServedBundle) -> None:
        self.bundles = Bundles(served)
        self.aggregator: Aggregator
        self.shards: dict[str, FakeShard] = {}
        self.names: dict[str, str] = {}
        self.registry = CollectorRegistry()
        self.ready_changes: list[bool] = []

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"mach_aggregator_{name}", labels) or 0.0

    @property
    def num_ready(self) -> int:
        return self.aggregator.fleet.routes(self.bundles.active.expected).num_ready

    async def search(self, queries, options, seconds=5.0, *, single=False):
        served = self.aggregator.bundle(options.bundle_version)
        return await self.aggregator.search(served, queries, options, seconds, single=single)

    async def until(self, condition: Callable[[], bool], seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@asynccontextmanager
async def fake_fleet(
    served: ServedBundle,
    loaded: dict[str, LoadedBundle],
    *,
    targets: Sequence[str] | None = None,
    prepare: Callable[[FakeShard], None] = lambda shard: None,
    policy: FanOutPolicy | None = None,
    limits: Limits | None = None,
    resolve=None,
    wait: bool = True,
) -> AsyncIterator[FakeFleet]:
    """An aggregator over one fake shard an address."""
    fleet = FakeFleet(served)

    def connect(address: str, name: str) -> FakeShard:
        fleet.names[address] = name
        shard = FakeShard(loaded[address], address)
        prepare(shard)
        fleet.shards[address] = shard
        return shard

    options = {} if resolve is None else {"resolve": resolve}
    fleet.aggregator = Aggregator(
        fleet.bundles,
        [Target.parse(text) for text in targets or loaded],
        connect,
        policy=policy or FanOutPolicy(minimum_repetitions=2),
        limits=limits or Limits(),
        metrics=AggregatorMetrics(fleet.registry),
        on_ready=fleet.ready_changes.append,
        **options,
    )
    await fleet.aggregator.start()
    try:
        if wait:
            total = served.manifest.num_repetitions
            await fleet.until(lambda: fleet.num_ready == total)
        yield fleet
    finally:
        await fleet.aggregator.close()

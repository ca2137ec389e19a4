"""Finding out which shards there are, what they hold, and whether that is enough."""

import asyncio

import pytest

from aggregator.coverage import MissingReason
from aggregator.fanout import Target
from aggregator.fanout.targets import resolve_name
from aggregator.policy import FanOutPolicy
from mach.errors import ConfigError, Unavailable, VersionMismatch
from tests.aggregator.fakes import fake_fleet
from tests.aggregator.test_fanout import ask

QUICK = FanOutPolicy(minimum_repetitions=2, probe_seconds=0.05, resolve_seconds=0.05)


def away(*addresses):
    def prepare(shard):
        if shard.address in addresses:
            shard.describe_error = Unavailable("connection refused")

    return prepare


async def test_starts_without_shards_and_becomes_ready_when_they_come(
    served, one_each, titles, caplog
):
    async with fake_fleet(
        served, one_each, prepare=away(*one_each), policy=QUICK, wait=False
    ) as fleet:
        await asyncio.sleep(0.5)
        assert fleet.ready_changes == []
        sentences = [r.message for r in caplog.records if "does not answer" in r.message]
        assert sorted(sentences) == [
            f"shard {address} does not answer: connection refused" for address in one_each
        ]
        with pytest.raises(Unavailable, match="0 of 4 repetitions answered, 2 are needed"):
            await ask(fleet, titles[0])
        fleet.shards["shard0:1"].describe_error = None
        await fleet.until(lambda: fleet.num_ready == 1)
        assert fleet.ready_changes == []
        fleet.shards["shard1:1"].describe_error = None
        await fleet.until(lambda: fleet.ready_changes == [True])
        result = await ask(fleet, titles[0])
        assert result.coverage.missing == {
            2: MissingReason.UNAVAILABLE,
            3: MissingReason.UNAVAILABLE,
        }


async def test_is_not_ready_while_too_few_are_reachable(served, one_each):
    async with fake_fleet(served, one_each, policy=QUICK) as fleet:
        assert fleet.ready_changes == [True]
        for address in ("shard0:1", "shard1:1", "shard2:1"):
            fleet.shards[address].describe_error = Unavailable("connection refused")
            fleet.shards[address].break_off()
        assert fleet.ready_changes == [True, False]
        assert fleet.metric("repetitions_ready") == 1
        assert fleet.metric("repetition_ready_endpoints", repetition="0") == 0
        assert fleet.metric("repetition_ready_endpoints", repetition="3") == 1
        for address in ("shard0:1", "shard1:1", "shard2:1"):
            fleet.shards[address].describe_error = None
        await fleet.until(lambda: fleet.ready_changes == [True, False, True])


async def test_a_silent_shard_is_noticed_without_traffic(served, one_each):
    async with fake_fleet(served, one_each, policy=QUICK) as fleet:
        fleet.shards["shard0:1"].describe_delay = None
        await fleet.until(lambda: fleet.metric("endpoints", state="silent") == 1)
        fleet.shards["shard0:1"].describe_delay = 0.0
        await fleet.until(lambda: fleet.metric("endpoints", state="ready") == 4)


async def test_what_nobody_foresaw_does_not_end_the_watch_over_a_shard(served, one_each, caplog):
    async with fake_fleet(served, one_each, policy=QUICK) as fleet:
        shard = fleet.shards["shard0:1"]
        shard.describe_error = AttributeError("a defect")
        await fleet.until(lambda: fleet.metric("endpoints", state="unreachable") == 1)
        assert "shard shard0:1 could not be asked for its state" in caplog.text
        shard.describe_error = None
        await fleet.until(lambda: fleet.metric("endpoints", state="ready") == 4)


async def test_traffic_spares_the_questions(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=2, probe_seconds=0.3)
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        before = fleet.shards["shard0:1"].describes
        until = asyncio.get_running_loop().time() + 1.5
        while asyncio.get_running_loop().time() < until:
            await ask(fleet, titles[0])
            await asyncio.sleep(0.01)
        assert fleet.shards["shard0:1"].describes <= before + 1
        await asyncio.sleep(1.0)  # in silence it is asked
        assert fleet.shards["shard0:1"].describes >= before + 2


async def test_a_connection_that_keeps_breaking_is_not_hammered(served, one_each):
    async with fake_fleet(served, one_each, policy=QUICK) as fleet:
        shard = fleet.shards["shard0:1"]
        before = shard.describes
        for _ in range(200):
            shard.break_off()
            await asyncio.sleep(0.005)
        assert shard.describes - before < 20
        await fleet.until(lambda: fleet.num_ready == 4)


async def test_shards_of_another_version_are_never_asked(served, one_each, titles, caplog):
    def other(shard):
        if shard.address in ("shard0:1", "shard1:1", "shard2:1"):
            shard.versions = ("f" * 64,)

    async with fake_fleet(served, one_each, prepare=other, policy=QUICK, wait=False) as fleet:
        await fleet.until(lambda: fleet.metric("endpoints", state="mismatch") == 3)
        await fleet.until(lambda: fleet.metric("endpoints", state="ready") == 1)
        with pytest.raises(VersionMismatch, match="3 hold another bundle version"):
            await ask(fleet, titles[0])
        result = await ask(fleet, titles[0], minimum_repetitions=1)
        assert set(result.coverage.missing.values()) == {MissingReason.VERSION_MISMATCH}
        assert not fleet.shards["shard0:1"].sizes
        assert fleet.ready_changes == []
        assert sum("holds bundle version ffff" in r.message for r in caplog.records) == 3
        for shard in fleet.shards.values():
            shard.versions = (served.version,)
        await fleet.until(lambda: fleet.ready_changes == [True])


async def test_a_version_change_seen_in_answers_is_looked_into(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        shard = fleet.shards["shard0:1"]
        shard.versions = ("f" * 64,)
        shard.error = VersionMismatch("another version is loaded")
        result = await ask(fleet, titles[0])
        assert result.coverage.missing == {0: MissingReason.VERSION_MISMATCH}
        await fleet.until(lambda: fleet.metric("endpoints", state="mismatch") == 1)


async def test_a_shard_of_another_shape_or_of_nothing_is_unfit(served, one_each):
    def unfit(shard):
        if shard.address == "shard0:1":
            shard.held = (7, 9)

    async with fake_fleet(served, one_each, prepare=unfit, wait=False) as fleet:
        await fleet.until(lambda: fleet.metric("endpoints", state="unfit") == 1)
        shards = fleet.aggregator.fleet
        standing = shards.standing(shards.endpoints["shard0:1"])
        assert standing == ("unfit", "holds no repetition of the bundle")


async def test_shards_may_hold_several_repetitions(served, load, titles):
    loaded = {"a:1": load(0, 1, 2), "b:1": load(3)}
    async with fake_fleet(served, loaded) as fleet:
        result = await ask(fleet, titles[8], k=1)
        assert result.product_ids == ["P00008"]
        assert result.coverage.answered == 4
        assert fleet.shards["a:1"].asked == [()]


async def test_replicas_share_the_load(served, load, titles):
    loaded = {"a:1": load(0, 1, 2, 3), "b:1": load(0, 1, 2, 3)}
    policy = FanOutPolicy(minimum_repetitions=2, max_rows=1, max_in_flight=8)
    async with fake_fleet(served, loaded, policy=policy) as fleet:
        for shard in fleet.shards.values():
            shard.delay = 0.01
        for _ in range(5):
            await asyncio.gather(*(ask(fleet, title) for title in titles[:16]))
        counts = [len(shard.sizes) for shard in fleet.shards.values()]
        assert sum(counts) == pytest.approx(80, abs=8)  # a few may be hedged
        assert min(counts) >= 15


async def test_a_quick_replica_is_asked_more_than_a_slow_one(served, load, titles):
    loaded = {"a:1": load(0, 1, 2, 3), "b:1": load(0, 1, 2, 3)}
    policy = FanOutPolicy(minimum_repetitions=2, max_rows=1, max_in_flight=4, hedge_fraction=0.0)
    async with fake_fleet(served, loaded, policy=policy) as fleet:
        fleet.shards["a:1"].delay, fleet.shards["b:1"].delay = 0.002, 0.02
        for _ in range(10):
            await asyncio.gather(*(ask(fleet, title) for title in titles[:8]))
        assert len(fleet.shards["a:1"].sizes) > 2 * len(fleet.shards["b:1"].sizes)


@pytest.mark.parametrize("error", [Unavailable("gone"), VersionMismatch("other")])
async def test_another_replica_is_asked_when_one_fails(served, load, titles, error):
    loaded = {"a:1": load(0, 1, 2, 3), "b:1": load(0, 1), "c:1": load(2, 3)}
    async with fake_fleet(served, loaded) as fleet:
        fleet.shards["a:1"].error = error
        for title in titles[:10]:
            result = await ask(fleet, title)
            assert result.coverage.missing == {}
        assert fleet.metric("retries_total") >= 1
        assert fleet.metric("shard_rpc_seconds_count", repetition="0", outcome="ok") == 10


async def test_a_slow_message_is_hedged_within_the_budget(served, load, titles):
    loaded = {"a:1": load(0, 1, 2, 3), "b:1": load(0, 1, 2, 3)}
    policy = FanOutPolicy(minimum_repetitions=2, straggler_seconds=30.0)
    async with fake_fleet(served, loaded, policy=policy) as fleet:
        for _ in range(200):
            await ask(fleet, titles[0])
        fleet.shards["a:1"].delay = 60.0
        fleet.aggregator.fleet.endpoints["b:1"].latency = 100.0  # so that a is asked first
        result = await asyncio.wait_for(ask(fleet, titles[0], seconds=30.0), 10.0)
        assert result.coverage.missing == {}
        assert fleet.metric("hedges_total", outcome="sent") >= 1
        assert fleet.metric("hedges_total", outcome="won") >= 1
        messages = sum(len(shard.sizes) for shard in fleet.shards.values())
        assert fleet.metric("hedges_total", outcome="sent") <= 4 + 0.05 * messages


async def test_hedging_stops_where_everything_is_slow(served, load, titles):
    loaded = {"a:1": load(0, 1, 2, 3), "b:1": load(0, 1, 2, 3)}
    policy = FanOutPolicy(minimum_repetitions=2, max_rows=1, max_in_flight=8)
    async with fake_fleet(served, loaded, policy=policy) as fleet:
        for _ in range(4):
            await asyncio.gather(*(ask(fleet, title) for title in titles[:16]))
        for shard in fleet.shards.values():
            shard.sizes.clear()
            shard.delay = 0.015
        before = fleet.metric("hedges_total", outcome="sent")
        for _ in range(20):
            await asyncio.gather(*(ask(fleet, title) for title in titles[:16]))
        hedged = fleet.metric("hedges_total", outcome="sent") - before
        assert hedged <= 0.05 * 320 + 16 * 0.05 + 4


async def test_a_replica_that_hangs_is_left_out(served, load, titles):
    loaded = {"a:1": load(0, 1, 2, 3), "b:1": load(0, 1, 2, 3)}
    policy = FanOutPolicy(
        minimum_repetitions=2,
        straggler_seconds=0.05,
        eject_seconds=60.0,
        max_rows=1,
        max_in_flight=8,
    )
    async with fake_fleet(served, loaded, policy=policy) as fleet:
        fleet.shards["b:1"].delay = 0.005
        fleet.shards["a:1"].delay = None
        async with asyncio.timeout(10):
            while fleet.metric("endpoints", state="ejected") < 1:
                await asyncio.gather(
                    *(ask(fleet, title, minimum_repetitions=0) for title in titles[:8]),
                    return_exceptions=True,
                )
        sent = len(fleet.shards["a:1"].sizes)
        for _ in range(20):
            await ask(fleet, titles[0])
        assert len(fleet.shards["a:1"].sizes) == sent


async def test_names_are_resolved_again(served, load, titles):
    found = {"x.test": ["10.0.0.1:5", "10.0.0.2:5"]}

    async def resolve(host, port):
        assert port == 5
        if isinstance(found[host], OSError):
            raise found[host]
        return found[host]

    whole = load(0, 1, 2, 3)
    loaded = {f"10.0.0.{number}:5": whole for number in range(1, 6)}
    async with fake_fleet(
        served, loaded, targets=["dns:///x.test:5"], policy=QUICK, resolve=resolve
    ) as fleet:
        endpoints = fleet.aggregator.fleet.endpoints
        await fleet.until(lambda: set(endpoints) == {"10.0.0.1:5", "10.0.0.2:5"})
        found["x.test"] = ["10.0.0.2:5", "10.0.0.3:5"]
        await fleet.until(lambda: set(endpoints) == {"10.0.0.2:5", "10.0.0.3:5"})
        await fleet.until(lambda: fleet.shards["10.0.0.1:5"].closed)
        found["x.test"] = OSError("no such name")
        await asyncio.sleep(0.2)
        assert set(endpoints) == {"10.0.0.2:5", "10.0.0.3:5"}
        assert (await ask(fleet, titles[4], k=1)).product_ids == ["P00004"]
        assert len(fleet.shards["10.0.0.1:5"].sizes) == 0


@pytest.mark.parametrize("error", [OSError("no such name"), RuntimeError("a defect")])
async def test_a_name_that_cannot_be_looked_up_does_not_stop_the_others(served, load, error):
    found = {"good.test": ["10.0.0.1:5"]}
    errors = [error, error]

    async def resolve(host, port):
        if host == "bad.test" and errors:
            raise errors.pop()
        return found.get(host, [])

    whole = load(0, 1, 2, 3)
    loaded = {f"10.0.0.{number}:5": whole for number in (1, 2)}
    targets = ["dns:///bad.test:5", "dns:///good.test:5"]
    async with fake_fleet(served, loaded, targets=targets, policy=QUICK, resolve=resolve) as fleet:
        found["good.test"] = ["10.0.0.2:5"]
        await fleet.until(lambda: set(fleet.aggregator.fleet.endpoints) == {"10.0.0.2:5"})


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test"])
async def test_what_is_no_name_cannot_be_looked_up(host):
    with pytest.raises(OSError, match="it is no name"):
        await resolve_name(host, 5)


async def test_a_replica_that_leaves_the_dns_finishes_its_work(served, load, titles):
    found = ["10.0.0.1:5"]

    async def resolve(host, port):
        return list(found)

    loaded = {f"10.0.0.{number}:5": load(0, 1, 2, 3) for number in (1, 2)}
    async with fake_fleet(
        served, loaded, targets=["dns:///x.test:5"], policy=QUICK, resolve=resolve
    ) as fleet:
        fleet.shards["10.0.0.1:5"].delay = 0.3
        asking = asyncio.create_task(ask(fleet, titles[0]))
        await fleet.until(lambda: len(fleet.shards["10.0.0.1:5"].sizes) == 1)
        found[:] = ["10.0.0.2:5"]
        result = await asking
        assert result.coverage.missing == {}
        await fleet.until(lambda: fleet.shards["10.0.0.1:5"].closed)


async def test_loopback_has_an_address():
    assert "127.0.0.1:80" in await resolve_name("localhost", 80)


@pytest.mark.parametrize(
    "text", ["localhost", "a:b", "dns:///x", "dns://8.8.8.8/x:1", "", "a:70000"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["localhost:1", "[::1]:50051", "unix:/tmp/x", "dns:///x.svc:5"])
def test_addresses(text):
    target = Target.parse(text)
    assert target.text == text
    assert target.is_name == text.startswith("dns:///")

"""From one bundle version to another under load, and back."""

import asyncio
import itertools

import numpy as np
import pytest

from aggregator.coverage import MissingReason
from aggregator.policy import FanOutPolicy
from aggregator.requests import SearchOptions
from aggregator.served import ServedBundle
from mach.errors import VersionMismatch, VersionNotFound
from mach.inference import LoadedBundle
from mach.v1 import shard_pb2
from mach.wire import decode_rows, encode_rows
from tests.aggregator.fakes import fake_fleet
from tests.aggregator.reference import reference_top_k
from tests.aggregator.test_fanout import ask
from tests.bundles import make_bundle

UINT8 = shard_pb2.ENCODING_UINT8


@pytest.fixture(scope="module")
def following(tmp_path_factory):
    """The next bundle: other products, buckets and features than the tiny one."""
    path = tmp_path_factory.mktemp("next") / "bundle"
    return ServedBundle(make_bundle(path, num_classes=150, num_buckets=24, seed=7))


@pytest.fixture(scope="module")
def loaded_next(following):
    return [LoadedBundle.load(following.bundle, [r]) for r in range(4)]


@pytest.fixture(scope="module")
def expected(served, following, one_each, loaded_next, titles):
    """Product ids and scores of every version for some titles."""
    shards = {
        served.version: [one_each[f"shard{r}:1"] for r in range(4)],
        following.version: loaded_next,
    }

    def find(bundle, text):
        features = bundle.featurizer.batch([text])
        rows = []
        for repetition, loaded in enumerate(shards[bundle.version]):
            values = loaded.run(features, [repetition])[repetition]
            rows.append(decode_rows(encode_rows(values, UINT8), UINT8, *values.shape)[0])
        return reference_top_k(bundle, np.stack(rows), 5)

    return {
        version: [find(bundle, text) for text in titles[:20]]
        for version, bundle in (
            (served.version, served.bundle),
            (following.version, following.bundle),
        )
    }


def hold_both(fleet, loaded_next):
    for number, loaded in enumerate(loaded_next):
        fleet.shards[f"shard{number}:1"].hold(loaded)


async def test_no_answer_is_lost_or_mixed(
    served, following, one_each, loaded_next, titles, expected
):
    # A busy machine may be slow, but nothing may be lost: no call is refused for its wait.
    policy = FanOutPolicy(
        minimum_repetitions=4, straggler_seconds=30.0, max_rows=16, max_queue_seconds=30.0
    )
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        for number, shard in enumerate(fleet.shards.values()):
            shard.delay = 0.001 * number
        hold_both(fleet, loaded_next)
        seen, stop = set(), False

        async def search_on(offset):
            for number in itertools.count(offset):
                if stop:
                    return
                at = number % 20
                answer = await fleet.search([titles[at]], SearchOptions(k=5), 30.0)
                ids, scores = expected[answer.bundle_version][at]
                assert answer.results[0].product_ids == ids
                assert answer.results[0].scores == pytest.approx(scores, abs=1e-3)
                assert answer.results[0].coverage.answered == 4
                seen.add(answer.bundle_version)

        callers = [asyncio.create_task(search_on(offset)) for offset in range(40)]
        fleet.bundles.loaded.append(following)
        for _ in range(3):  # there and back, and there
            await asyncio.sleep(0.1)
            await fleet.aggregator.check_shards(fleet.bundles.loaded[1])
            fleet.bundles.loaded.reverse()
            fleet.aggregator.bundles_changed()
        await asyncio.sleep(0.1)
        stop = True
        await asyncio.gather(*callers)
        assert seen == {served.version, following.version}
        assert fleet.metric("bundle_info", bundle_version=following.version, state="active") == 1
        assert fleet.metric("bundle_info", bundle_version=served.version, state="standby") == 1
        assert fleet.ready_changes == [True]


async def test_shards_that_lack_the_bundle_are_waited_for(served, following, one_each, loaded_next):
    async with fake_fleet(served, one_each) as fleet:
        fleet.bundles.loaded.append(following)
        with pytest.raises(VersionMismatch, match=r"hold 0 of the 4 .* 4 are needed; load it on"):
            await fleet.aggregator.check_shards(following)
        for number in range(3):
            fleet.shards[f"shard{number}:1"].hold(loaded_next[number])
        with pytest.raises(VersionMismatch, match="hold 3 of the 4"):
            await fleet.aggregator.check_shards(following)
        fleet.shards["shard3:1"].hold(loaded_next[3])
        await fleet.aggregator.check_shards(following)


async def test_a_shard_that_is_away_holds_up_no_switch(served, following, one_each, loaded_next):
    async with fake_fleet(served, one_each) as fleet:
        fleet.bundles.loaded.append(following)
        hold_both(fleet, loaded_next)
        away = fleet.shards["shard3:1"]
        away.describe_delay = None
        away.break_off()
        await fleet.aggregator.check_shards(following)


async def test_repetitions_that_a_switch_takes_away_are_not_reported_any_more(
    served, one_each, titles, tmp_path
):
    smaller = ServedBundle(make_bundle(tmp_path / "smaller", num_repetitions=2, seed=5))
    async with fake_fleet(served, one_each) as fleet:
        fleet.shards["shard3:1"].break_off()  # what was said last of its repetition is an alert
        name = "mach_aggregator_repetition_ready_endpoints"

        def shown():
            found = (
                fleet.registry.get_sample_value(name, {"repetition": str(r)}) for r in range(6)
            )
            return [value is not None for value in found]

        assert shown() == [True] * 4 + [False] * 2
        fleet.bundles.loaded.insert(0, smaller)
        fleet.aggregator.bundles_changed()
        assert shown() == [True] * 2 + [False] * 4
        fleet.bundles.loaded.reverse()
        fleet.aggregator.bundles_changed()
        assert shown() == [True] * 4 + [False] * 2


async def test_a_version_can_be_asked_for_by_name(
    served, following, one_each, loaded_next, titles, expected
):
    async with fake_fleet(served, one_each) as fleet:
        fleet.bundles.loaded.append(following)
        hold_both(fleet, loaded_next)
        await fleet.aggregator.fleet.refresh()
        for bundle in (served, following):
            result = await ask(fleet, titles[3], k=5, bundle_version=bundle.version)
            assert result.product_ids == expected[bundle.version][3][0]
        with pytest.raises(VersionNotFound):
            await ask(fleet, titles[3], bundle_version="0" * 64)


async def test_shards_left_behind_by_a_switch_are_reported(
    served, following, one_each, loaded_next, titles, caplog
):
    async with fake_fleet(served, one_each) as fleet:
        for number in (0, 1):
            fleet.shards[f"shard{number}:1"].hold(loaded_next[number])
        await fleet.aggregator.fleet.refresh()
        fleet.bundles.loaded.insert(0, following)
        fleet.aggregator.bundles_changed()
        assert fleet.metric("endpoints", state="mismatch") == 2
        result = await ask(fleet, titles[0])
        assert result.coverage.missing == {
            2: MissingReason.VERSION_MISMATCH,
            3: MissingReason.VERSION_MISMATCH,
        }
        lines = [r.message for r in caplog.records if "holds bundle version" in r.message]
        assert len(lines) == 2

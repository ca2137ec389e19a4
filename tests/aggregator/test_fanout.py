"""Which shards are asked, what their answers are worth, and how long anyone waits."""

import asyncio
import time

import pytest

from aggregator.coverage import MissingReason
from aggregator.policy import FanOutPolicy
from aggregator.requests import SearchOptions
from mach.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    Unavailable,
    VersionMismatch,
    VersionNotFound,
)
from mach.v1 import shard_pb2
from tests.aggregator.fakes import fake_fleet

PATIENT = FanOutPolicy(minimum_repetitions=2, straggler_seconds=30.0)


async def ask(fleet, text, seconds=5.0, **options):
    options = SearchOptions(**{"k": 3, **options})
    answer = await fleet.search([text], options, seconds, single=True)
    return answer.results[0]


async def test_finds_the_product_of_a_title(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        for number in (0, 17, 199):
            result = await ask(fleet, titles[number])
            assert result.product_ids[0] == f"P{number:05d}"
            assert result.scores == sorted(result.scores, reverse=True)
            assert (result.coverage.answered, result.coverage.total) == (4, 4)
            assert result.coverage.missing == {}
            assert result.attributes is None
            assert result.explanations is None


async def test_attributes_and_explanation_where_asked_for(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        result = await ask(fleet, titles[5], include_attributes=True, explain=True)
        assert result.attributes[0]["title"] == titles[5]
        for product, score, parts in zip(
            result.product_ids, result.scores, result.explanations, strict=True
        ):
            number = served.catalog.class_of(product)
            assert [part[0] for part in parts] == [0, 1, 2, 3]
            assert [part[1] for part in parts] == [
                served.bundle.hash.buckets(r, number) for r in range(4)
            ]
            assert sum(part[2] for part in parts) / 4 == pytest.approx(score, rel=1e-6)


async def test_a_query_of_which_nothing_is_known_asks_no_shard(served, one_each):
    async with fake_fleet(served, one_each) as fleet:
        result = await ask(fleet, "zzzz qqqq", include_attributes=True)
        assert (result.product_ids, result.scores, result.attributes) == ([], [], [])
        assert result.coverage.missing == {}
        assert all(not shard.sizes for shard in fleet.shards.values())


async def test_an_unknown_query_among_known_ones_gets_nothing(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        answer = await fleet.search(
            [titles[0], "zzzz", titles[1]], SearchOptions(k=1), 5.0, single=False
        )
        assert [result.product_ids for result in answer.results] == [["P00000"], [], ["P00001"]]


async def test_queries_that_wait_are_sent_together(served, one_each, titles):
    async with fake_fleet(served, one_each, policy=PATIENT) as fleet:
        for shard in fleet.shards.values():
            shard.delay = 0.02
        results = await asyncio.gather(*(ask(fleet, title, k=1) for title in titles[:100]))
        assert [r.product_ids for r in results] == [[f"P{i:05d}"] for i in range(100)]
        sizes = fleet.shards["shard0:1"].sizes
        assert sum(sizes) == 100
        assert len(sizes) <= 3
        assert max(sizes) <= PATIENT.max_rows
        assert fleet.metric("batch_size_count") == len(sizes)


async def test_a_lone_query_is_not_kept_for_company(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        await ask(fleet, titles[0])
        for title in titles[:20]:
            await ask(fleet, title)
        assert set(fleet.shards["shard0:1"].sizes) == {1}


async def test_a_call_larger_than_a_message_is_cut_and_put_together(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=2, max_rows=16)
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        answer = await fleet.search(titles[:50], SearchOptions(k=1), 5.0, single=False)
        assert [r.product_ids for r in answer.results] == [[f"P{i:05d}"] for i in range(50)]
        assert max(fleet.shards["shard0:1"].sizes) <= 16


async def test_no_message_is_larger_than_a_shard_accepts(served, one_each, titles):
    def small(shard):
        shard.max_batch_size = 5 if shard.address == "shard2:1" else 256

    async with fake_fleet(served, one_each, prepare=small) as fleet:
        answer = await fleet.search(titles[:20], SearchOptions(k=1), 5.0, single=False)
        assert len(answer.results) == 20
        assert max(fleet.shards["shard0:1"].sizes) == 5


@pytest.mark.parametrize("encoding", [1, 2, 3])
async def test_no_answer_of_a_shard_is_larger_than_a_message(served, load, titles, encoding):
    policy = FanOutPolicy(minimum_repetitions=2, encoding=encoding, max_message_bytes=2000)
    sizes = []

    def weighed(shard):
        shard.spoil = lambda answer: sizes.append(
            shard_pb2.PredictStreamResponse(id=2**63, response=answer).ByteSize()
        )

    loaded = {"a:1": load(0), "b:1": load(1, 2, 3)}
    async with fake_fleet(served, loaded, prepare=weighed, policy=policy) as fleet:
        answer = await fleet.search(titles[:64], SearchOptions(k=1), 5.0, single=False)
        assert len(answer.results) == 64
        await asyncio.gather(*(ask(fleet, title) for title in titles[:64]))  # together if they fit
        most = max(fleet.shards["b:1"].sizes)
        assert most > 1
    assert 1000 < max(sizes) <= 2000


async def test_a_message_has_one_query_at_least(served, load, titles):
    policy = FanOutPolicy(minimum_repetitions=2, max_message_bytes=10)
    async with fake_fleet(served, {"a:1": load(0, 1, 2, 3)}, policy=policy) as fleet:
        await fleet.search(titles[:3], SearchOptions(k=1), 5.0, single=False)
        assert fleet.shards["a:1"].sizes == [1, 1, 1]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda a: a.repetitions[0].ClearField("data"), MissingReason.INVALID_ANSWER),
        (lambda a: a.ClearField("repetitions"), MissingReason.INVALID_ANSWER),
        (lambda a: setattr(a, "num_queries", 7), MissingReason.INVALID_ANSWER),
        (lambda a: setattr(a, "num_buckets", 3), MissingReason.INVALID_ANSWER),
        (lambda a: setattr(a, "encoding", 1), MissingReason.INVALID_ANSWER),
        (lambda a: setattr(a, "encoding", 99), MissingReason.INVALID_ANSWER),
        (lambda a: setattr(a.repetitions[0], "repetition", 3), MissingReason.INVALID_ANSWER),
        (
            lambda a: setattr(a.repetitions[0], "minimum", b"\x00\x00\xc0\x7f"),
            MissingReason.INVALID_ANSWER,
        ),
        (
            lambda a: setattr(a.repetitions[0], "step", b"\x00\x00\x80\x7f"),
            MissingReason.INVALID_ANSWER,
        ),
        (lambda a: setattr(a, "bundle_version", "f" * 64), MissingReason.VERSION_MISMATCH),
    ],
)
async def test_an_invalid_answer_counts_as_none(served, one_each, titles, spoil, reason):
    async with fake_fleet(served, one_each) as fleet:
        fleet.shards["shard1:1"].spoil = spoil
        result = await ask(fleet, titles[3], k=1)
        assert result.product_ids == ["P00003"]
        assert result.coverage.answered == 3
        assert result.coverage.missing == {1: reason}
        assert fleet.metric("degraded_total", reason=reason.name.lower()) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable("gone"), MissingReason.UNAVAILABLE),
        (Overloaded("full"), MissingReason.OVERLOADED),
        (DeadlineExceeded("late"), MissingReason.TIMEOUT),
        (VersionMismatch("other"), MissingReason.VERSION_MISMATCH),
    ],
)
async def test_a_shard_that_fails_is_done_without(served, one_each, titles, error, reason):
    async with fake_fleet(served, one_each) as fleet:
        fleet.shards["shard2:1"].error = error
        result = await ask(fleet, titles[3], k=1)
        assert result.product_ids == ["P00003"]
        assert result.coverage.missing == {2: reason}


async def test_too_few_repetitions_are_unavailable(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        for number in (0, 1):
            fleet.shards[f"shard{number}:1"].error = Unavailable("gone")
        assert (await ask(fleet, titles[0], minimum_repetitions=2)).coverage.answered == 2
        with pytest.raises(
            Unavailable, match="2 of 4 repetitions answered, 3 are needed: 2 cannot"
        ):
            await ask(fleet, titles[0], minimum_repetitions=3)


async def test_too_few_because_of_versions_is_a_mismatch(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        for number in (0, 1, 2):
            fleet.shards[f"shard{number}:1"].error = VersionMismatch("other")
        with pytest.raises(VersionMismatch, match="3 hold another bundle version"):
            await ask(fleet, titles[0])


async def test_too_few_because_of_load_is_overloaded(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        for number in (0, 1, 2):
            fleet.shards[f"shard{number}:1"].error = Overloaded("full")
        with pytest.raises(Overloaded, match="3 are overloaded") as caught:
            await ask(fleet, titles[0])
        assert caught.value.retry_after_ms >= 1


async def test_a_shard_that_hangs_does_not_hold_up_the_answer(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=2, straggler_seconds=0.05)
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        await ask(fleet, titles[0])
        fleet.shards["shard3:1"].delay = None
        started = time.perf_counter()
        result = await ask(fleet, titles[0], k=1)
        seconds = time.perf_counter() - started
        assert 0.04 < seconds < 1.0
        assert result.coverage.missing == {3: MissingReason.TIMEOUT}
        assert fleet.shards["shard3:1"].withdrawn == 1


async def test_the_minimum_is_waited_for_until_the_deadline(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=2, straggler_seconds=0.02)
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        fleet.shards["shard3:1"].delay = 0.2
        assert (await ask(fleet, titles[0], minimum_repetitions=4)).coverage.answered == 4
        fleet.shards["shard3:1"].delay = None
        started = time.perf_counter()
        with pytest.raises(Unavailable, match="3 of 4 repetitions answered, 4 are needed: 1 did"):
            await ask(fleet, titles[0], seconds=0.3, minimum_repetitions=4)
        assert 0.25 < time.perf_counter() - started < 2.0


async def test_answers_at_the_deadline_with_what_there_is(served, one_each, titles):
    async with fake_fleet(served, one_each, policy=PATIENT) as fleet:
        fleet.shards["shard3:1"].delay = None
        result = await ask(fleet, titles[0], seconds=0.1)
        assert result.coverage.missing == {3: MissingReason.TIMEOUT}


async def test_calls_in_one_batch_keep_their_own_deadlines_and_minimum(served, one_each, titles):
    async with fake_fleet(served, one_each, policy=PATIENT) as fleet:
        fleet.shards["shard3:1"].delay = 0.3
        quick, thorough, impossible = await asyncio.gather(
            ask(fleet, titles[0], seconds=0.1),
            ask(fleet, titles[1], seconds=5.0),
            ask(fleet, titles[2], seconds=0.1, minimum_repetitions=4),
            return_exceptions=True,
        )
        assert fleet.shards["shard0:1"].sizes == [3]
        assert quick.coverage.answered == 3
        assert thorough.coverage.answered == 4
        assert isinstance(impossible, Unavailable)


async def test_a_shard_that_hangs_is_left_out_and_comes_back(served, one_each, titles):
    policy = FanOutPolicy(
        minimum_repetitions=2, straggler_seconds=0.02, eject_seconds=0.1, probe_seconds=0.05
    )
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        shard = fleet.shards["shard3:1"]
        shard.delay = shard.describe_delay = None
        for _ in range(3):
            await ask(fleet, titles[0])
        assert fleet.metric("ejections_total") == 1
        sent = len(shard.sizes)
        result = await ask(fleet, titles[0])
        assert result.coverage.missing == {3: MissingReason.TIMEOUT}
        assert len(shard.sizes) == sent
        await fleet.until(lambda: fleet.metric("endpoints", state="silent") == 1)
        shard.delay = shard.describe_delay = 0.0
        await fleet.until(lambda: fleet.num_ready == 4)
        assert (await ask(fleet, titles[0])).coverage.answered == 4


async def test_a_shard_that_is_slow_after_its_return_is_left_out_at_once(served, one_each, titles):
    policy = FanOutPolicy(
        minimum_repetitions=2, straggler_seconds=0.02, eject_seconds=0.05, probe_seconds=0.05
    )
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        fleet.shards["shard3:1"].delay = None  # but it says it is well
        for expected in (1, 2):
            while fleet.metric("ejections_total") < expected:
                await ask(fleet, titles[0])
            await fleet.until(lambda: fleet.num_ready == 4)
        await ask(fleet, titles[0])
        assert fleet.metric("ejections_total") == 3


async def test_an_ejected_shard_is_asked_where_the_minimum_needs_it(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=2, straggler_seconds=0.02, eject_seconds=60.0)
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        shard = fleet.shards["shard3:1"]
        shard.delay = None
        for _ in range(3):
            await ask(fleet, titles[0])
        assert fleet.metric("endpoints", state="ejected") == 1
        shard.delay = 0.05
        result = await ask(fleet, titles[0], minimum_repetitions=4)
        assert result.coverage.answered == 4


async def test_late_shards_are_kept_where_too_few_would_be_left(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=3, straggler_seconds=0.02)
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        for number in (2, 3):
            fleet.shards[f"shard{number}:1"].delay = 0.1
        for _ in range(10):
            assert (await ask(fleet, titles[0])).coverage.answered >= 3
        assert fleet.metric("endpoints", state="ready") >= 3


async def test_shards_that_answer_nonsense_are_left_out(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        fleet.shards["shard1:1"].spoil = lambda a: a.ClearField("repetitions")
        for _ in range(3):
            await ask(fleet, titles[0])
        assert fleet.metric("endpoints", state="ejected") == 1
        result = await ask(fleet, titles[0])
        assert result.coverage.missing == {1: MissingReason.INVALID_ANSWER}
        assert len(fleet.shards["shard1:1"].sizes) == 3


async def test_what_a_caller_left_is_taken_back(served, one_each, titles):
    async with fake_fleet(served, one_each, policy=PATIENT) as fleet:
        for shard in fleet.shards.values():
            shard.delay = None
        task = asyncio.create_task(ask(fleet, titles[0]))
        await fleet.until(lambda: fleet.shards["shard0:1"].sizes == [1])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [shard.withdrawn for shard in fleet.shards.values()] == [1, 1, 1, 1]
        assert fleet.metric("queries_in_flight") == 0
        for shard in fleet.shards.values():
            shard.delay = 0.0
        assert (await ask(fleet, titles[0])).coverage.answered == 4


async def test_what_was_left_or_expired_while_waiting_is_never_sent(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=2, max_in_flight=1, straggler_seconds=30.0)
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        for shard in fleet.shards.values():
            shard.delay = 0.2
        first = asyncio.create_task(ask(fleet, titles[0]))
        await fleet.until(lambda: fleet.shards["shard0:1"].sizes == [1])
        left = asyncio.create_task(ask(fleet, titles[1]))
        expired = asyncio.create_task(ask(fleet, titles[2], seconds=0.05))
        kept = asyncio.create_task(ask(fleet, titles[3], k=1))
        await asyncio.sleep(0.01)
        left.cancel()
        with pytest.raises(DeadlineExceeded, match="while the request waited"):
            await expired
        assert (await kept).product_ids == ["P00003"]
        await first
        assert fleet.shards["shard0:1"].sizes == [1, 1]
        assert fleet.metric("dropped_total", reason="cancelled") == 1
        assert fleet.metric("dropped_total", reason="expired") == 1


async def test_a_full_queue_refuses_at_once(served, one_each, titles):
    policy = FanOutPolicy(
        minimum_repetitions=2, max_in_flight=1, max_queue=4, straggler_seconds=30.0
    )
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        for shard in fleet.shards.values():
            shard.delay = 0.1
        first = asyncio.create_task(ask(fleet, titles[0]))
        await fleet.until(lambda: fleet.shards["shard0:1"].sizes == [1])
        waiting = [asyncio.create_task(ask(fleet, titles[i])) for i in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="too many queries wait"):
            await ask(fleet, titles[5])
        assert fleet.metric("shed_total", reason="queue_full") == 1
        for result in await asyncio.gather(first, *waiting):
            assert result.coverage.answered == 4


async def test_what_could_not_be_answered_in_time_is_refused(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=2, max_in_flight=1, straggler_seconds=30.0)
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        for shard in fleet.shards.values():
            shard.delay = 0.1
        for _ in range(12):  # until it is known how long a batch takes
            await ask(fleet, titles[0])
        for shard in fleet.shards.values():
            shard.delay = 1.0
        first = asyncio.create_task(ask(fleet, titles[0]))
        await fleet.until(lambda: sum(fleet.shards["shard0:1"].sizes) == 13)
        with pytest.raises(Overloaded, match="more than is left of the request's deadline") as no:
            await ask(fleet, titles[1], seconds=0.12)
        assert 50 < no.value.retry_after_ms < 200
        assert (await ask(fleet, titles[1], seconds=30.0)).coverage.answered == 4
        await first


async def test_a_long_expected_wait_is_refused_even_with_time(served, one_each, titles):
    policy = FanOutPolicy(
        minimum_repetitions=2, max_in_flight=1, max_queue_seconds=0.05, straggler_seconds=30.0
    )
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        for shard in fleet.shards.values():
            shard.delay = 0.1
        for _ in range(12):
            await ask(fleet, titles[0])
        for shard in fleet.shards.values():
            shard.delay = 1.0
        first = asyncio.create_task(ask(fleet, titles[0]))
        await fleet.until(lambda: sum(fleet.shards["shard0:1"].sizes) == 13)
        with pytest.raises(Overloaded, match="the expected wait is"):
            await ask(fleet, titles[1], seconds=60.0)
        await first


async def test_other_bundle_versions_are_not_found(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        with pytest.raises(VersionNotFound, match="0000 is not served here"):
            await ask(fleet, titles[0], bundle_version="0000")
        assert (await ask(fleet, titles[0], bundle_version=served.version)).product_ids


async def test_a_text_with_too_many_features_spoils_no_other_query(served, one_each, titles):
    from aggregator.policy import Limits

    async with fake_fleet(served, one_each, limits=Limits(max_nonzeros=12)) as fleet:
        long, short = await asyncio.gather(
            ask(fleet, " ".join(titles[:4])), ask(fleet, titles[1], k=1), return_exceptions=True
        )
        assert isinstance(long, InvalidInput)
        assert long.field == "query.text"
        assert short.product_ids == ["P00001"]
        with pytest.raises(InvalidInput) as caught:
            await fleet.search(
                [titles[0], " ".join(titles[:4])], SearchOptions(), 5.0, single=False
            )
        assert caught.value.field == "queries[1].text"


async def test_closing_answers_what_is_waiting(served, one_each, titles):
    async with fake_fleet(served, one_each, policy=PATIENT) as fleet:
        for shard in fleet.shards.values():
            shard.delay = None
        task = asyncio.create_task(ask(fleet, titles[0]))
        await fleet.until(lambda: fleet.shards["shard0:1"].sizes == [1])
        await fleet.aggregator.close()
        with pytest.raises(Unavailable, match="stopping"):
            await task
        with pytest.raises(Unavailable, match="stopping"):
            await ask(fleet, titles[0])
        assert all(shard.closed for shard in fleet.shards.values())

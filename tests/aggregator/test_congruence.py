"""The aggregator against a few lines of NumPy, and no caller gets another's rows."""

import asyncio
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.coverage import Coverage
from aggregator.local import LocalSearcher
from aggregator.policy import FanOutPolicy
from aggregator.requests import SearchOptions
from aggregator.scores import CodedScores, PlainScores, read_scores
from mach.errors import InvalidInput, Unavailable, VersionNotFound
from mach.features import SparseBatch
from mach.inference import RepetitionSession
from mach.merge import MergeRule
from mach.v1 import shard_pb2
from mach.wire import decode_rows, encode_rows
from tests.aggregator.fakes import fake_fleet
from tests.aggregator.reference import reference_top_k

ENCODINGS = [
    shard_pb2.ENCODING_UINT8,
    shard_pb2.ENCODING_FLOAT16,
    shard_pb2.ENCODING_FLOAT32,
]


@pytest.fixture(scope="module")
def rows_of(tiny_bundle):
    """Log-probabilities of a text as a shard sends them, shape (R, B)."""
    sessions = [RepetitionSession(tiny_bundle, r) for r in range(4)]

    def rows(text, encoding):
        batch = tiny_bundle.featurizer.batch([text])
        return np.concatenate(
            [
                decode_rows(encode_rows(session.run(batch), encoding), encoding, 1, 16)
                for session in sessions
            ]
        )

    return rows


def assert_same(result, expected):
    ids, scores = expected
    assert result.product_ids == ids
    assert result.scores == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("lost", [(), (1,), (0, 3)])
async def test_single_and_batch_agree_with_numpy(served, one_each, titles, rows_of, encoding, lost):
    policy = FanOutPolicy(minimum_repetitions=2, encoding=encoding)
    kept = [r for r in range(4) if r not in lost]
    async with fake_fleet(served, one_each, policy=policy) as fleet:
        for number in lost:
            fleet.shards[f"shard{number}:1"].error = Unavailable("gone")
        texts = [*titles[::23], "red", "drill lamp", "acme"]
        batch = await fleet.search(texts, SearchOptions(k=20), 5.0, single=False)
        for text, in_batch in zip(texts, batch.results, strict=True):
            alone = await fleet.search([text], SearchOptions(k=20), 5.0, single=True)
            expected = reference_top_k(served.bundle, rows_of(text, encoding)[kept], 20, kept)
            assert_same(in_batch, expected)
            assert_same(alone.results[0], expected)
            assert alone.results[0].coverage.answered == len(kept)


async def test_features_and_text_agree(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet:
        features = served.featurizer.batch(titles[:5])
        mixed = [features.rows(0, 1), titles[1], features.rows(2, 3), titles[3], titles[4]]
        as_mixed = await fleet.search(mixed, SearchOptions(), 5.0, single=False)
        as_text = await fleet.search(titles[:5], SearchOptions(), 5.0, single=False)
        for one, other in zip(as_mixed.results, as_text.results, strict=True):
            assert one.product_ids == other.product_ids
            assert one.scores == other.scores


async def test_allowed_and_blocked_products(served, one_each, rows_of, titles):
    async with fake_fleet(served, one_each) as fleet:

        async def ids(**options):
            options = SearchOptions(k=10, **options)
            answer = await fleet.search([titles[9]], options, 5.0, single=True)
            return answer.results[0].product_ids

        rows = rows_of(titles[9], shard_pb2.ENCODING_UINT8)
        everything = reference_top_k(served.bundle, rows, 200)[0]
        assert await ids(blocked_product_ids=("P00009", "nothing")) == everything[1:11]
        few = ("P00003", "P00009", "P00100", "no such product")
        assert await ids(allowed_product_ids=few) == [i for i in everything if i in few]
        many = tuple(f"P{i:05d}" for i in range(0, 200, 2))  # looked up another way than a few
        assert await ids(allowed_product_ids=many) == [i for i in everything if i in many][:10]
        assert await ids(allowed_product_ids=few, blocked_product_ids=few) == []
        assert await ids(allowed_product_ids=("no such product",)) == []


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_batching_never_gives_one_caller_anothers_rows(served, one_each, titles, rows_of, data):
    """Calls of all sizes at once, some given up, some shards failing at random moments."""
    numbers = st.integers(0, 199)
    calls = data.draw(st.lists(st.lists(numbers, min_size=1, max_size=9), min_size=1, max_size=25))
    given_up = data.draw(st.sets(st.integers(0, len(calls) - 1), max_size=3))
    max_rows = data.draw(st.sampled_from([1, 3, 8, 64]))
    delays = data.draw(st.lists(st.floats(0, 0.01), min_size=4, max_size=4))
    failing = data.draw(st.sampled_from([None, 0, 2]))

    @cache
    def reference(number, failing):
        kept = [r for r in range(4) if r != failing]
        rows = rows_of(titles[number], shard_pb2.ENCODING_UINT8)[kept]
        return reference_top_k(served.bundle, rows, 3, kept)

    policy = FanOutPolicy(minimum_repetitions=3, max_rows=max_rows, straggler_seconds=30.0)

    async def scenario():
        async with fake_fleet(served, one_each, policy=policy) as fleet:
            for shard, delay in zip(fleet.shards.values(), delays, strict=True):
                shard.delay = delay
            if failing is not None:
                fleet.shards[f"shard{failing}:1"].error = Unavailable("gone")
            tasks = [
                asyncio.create_task(
                    fleet.search(
                        [titles[number] for number in call],
                        SearchOptions(k=3),
                        30.0,
                        single=False,
                    )
                )
                for call in calls
            ]
            await asyncio.sleep(0.002)
            for number in given_up:
                tasks[number].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for number, (call, answer) in enumerate(zip(calls, answers, strict=True)):
                if isinstance(answer, asyncio.CancelledError):
                    assert number in given_up
                    continue
                for title, result in zip(call, answer.results, strict=True):
                    ids, scores = reference(title, failing)
                    assert result.product_ids == ids
                    assert result.scores == pytest.approx(scores, abs=1e-3)

    asyncio.run(scenario())


@pytest.mark.parametrize("exponent", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_scores_are_the_rule_applied_to_what_was_sent(exponent, encoding):
    rng = np.random.default_rng(3)
    rows = {
        r: np.log(rng.dirichlet(np.full(50, 0.3), size=4).astype(np.float32) + 1e-9).clip(max=0)
        for r in (1, 4, 6)
    }
    rule = MergeRule(exponent)
    encoded = {r: encode_rows(values.astype(np.float32), encoding) for r, values in rows.items()}
    scores = read_scores(encoded, encoding, 4, 50, rule)
    assert scores.repetitions.tolist() == [1, 4, 6]
    for query in range(4):
        out = np.full((3, 50), np.nan, np.float32)
        assert scores.scores(query, out) is out
        decoded = np.stack([decode_rows(encoded[r], encoding, 4, 50)[query] for r in (1, 4, 6)])
        np.testing.assert_array_equal(out, rule.transform(decoded.copy()))
        buckets = np.array([[0, 7, 49], [3, 3, 3]])
        logs = scores.log_probabilities(query, buckets)
        assert logs.dtype == np.float32
        np.testing.assert_array_equal(logs, decoded[[0, 1, 2], buckets])


def test_scores_choose_their_form_by_encoding():
    rows = np.zeros((1, 2), np.float32)
    kinds = [
        type(read_scores({0: encode_rows(rows, encoding)}, encoding, 1, 2, MergeRule(0.0)))
        for encoding in ENCODINGS
    ]
    assert kinds == [CodedScores, PlainScores, PlainScores]


@pytest.fixture(scope="module")
def searcher(tiny_bundle):
    return LocalSearcher(tiny_bundle)


class TestLocalSearcher:
    def test_agrees_with_numpy(self, searcher, titles, rows_of):
        texts = [*titles[::37], "black"]
        answer = searcher.search(texts, SearchOptions(k=15, explain=True))
        for text, result in zip(texts, answer.results, strict=True):
            rows = rows_of(text, shard_pb2.ENCODING_FLOAT32)
            assert_same(result, reference_top_k(searcher.served.bundle, rows, 15))
            assert result.coverage == Coverage(4, 4, {})
            first = result.explanations[0]
            assert np.mean([part[2] for part in first]) == pytest.approx(result.scores[0])

    def test_some_repetitions(self, tiny_bundle, titles, rows_of):
        searcher = LocalSearcher(tiny_bundle, repetitions=[3, 1])
        result = searcher.search([titles[50]]).results[0]
        rows = rows_of(titles[50], shard_pb2.ENCODING_FLOAT32)[[1, 3]]
        assert_same(result, reference_top_k(tiny_bundle, rows, 10, [1, 3]))

    def test_nothing_known(self, searcher, titles):
        answer = searcher.search(["zzzz", titles[2]], SearchOptions(k=1))
        assert [result.product_ids for result in answer.results] == [[], ["P00002"]]
        assert searcher.search(["zzzz"]).results[0].product_ids == []

    @pytest.mark.parametrize(
        ("queries", "options", "field"),
        [
            ([], {}, "queries"),
            ([""], {}, "query.text"),
            (["a"] * 257, {}, "queries"),
            (["a", "x" * 5000], {}, "queries[1].text"),
            (["a"], {"k": 0}, "options.k"),
            (["a"], {"minimum_repetitions": 5}, "options.minimum_repetitions"),
        ],
    )
    def test_bad_input_is_named(self, searcher, queries, options, field):
        with pytest.raises(InvalidInput) as caught:
            searcher.search(queries, SearchOptions(**options))
        assert caught.value.field == field

    def test_bad_features_are_named(self, searcher):
        row = SparseBatch(
            np.array([10**6], np.int32), np.ones(1, np.float32), np.array([0, 1], np.int32)
        )
        with pytest.raises(InvalidInput, match=r"features\.indices"):
            searcher.search([row])

    def test_other_versions_are_not_found(self, searcher):
        with pytest.raises(VersionNotFound):
            searcher.search(["a"], SearchOptions(bundle_version="0"))

"""Every engine returns what scoring every product returns: same products, order and scores."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable, MergeRule, ProductSet, TopK, engine
from mach.merge._search import CHUNK
from mach.merge.reference import reference_top_k

# The first test compiles, which takes a while on a busy machine.
pytestmark = pytest.mark.timeout(900)


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return (x - np.log(np.exp(x).sum(axis=-1, keepdims=True))).astype(np.float32)


def draw_scores(kind, rng, repetitions, buckets):
    """Additive scores (r, B), float32, of the distributions a search may meet."""
    shape = (repetitions, buckets)
    if kind == "equal":
        return np.full(shape, np.float32(rng.normal()))
    if kind == "flat":
        return log_softmax(rng.normal(size=shape) * 0.1)
    if kind == "peaked":
        return log_softmax(rng.standard_t(1.5, size=shape) * 2)
    if kind == "quantised":  # 8-bit log-probabilities: exact ties everywhere
        return (np.round(log_softmax(rng.normal(size=shape) * 3) * 4) / 4).astype(np.float32)
    if kind == "probabilities":
        return np.exp(log_softmax(rng.standard_t(1.5, size=shape) * 2))
    if kind == "two levels":
        return rng.integers(0, 2, shape).astype(np.float32)
    if kind == "infinite":
        scores = log_softmax(rng.normal(size=shape) * 3)
        scores[rng.random(shape) < 0.5] = -np.inf
        return scores
    if kind == "huge":
        return (rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape)).astype(np.float32)
    if kind == "zero":
        return np.zeros(shape, np.float32)
    raise AssertionError(kind)


KINDS = [
    "equal",
    "flat",
    "peaked",
    "quantised",
    "probabilities",
    "two levels",
    "infinite",
    "huge",
    "zero",
]


def make_table(family, rng, classes, buckets, repetitions):
    """A table and its (R, K) buckets."""
    if family == "hash":
        hashing = UniversalHash.draw(classes, buckets, repetitions, int(rng.integers(1 << 30)))
        return BucketTable.from_hash(hashing, classes), hashing.table()
    if family == "skewed":  # most products in few buckets, many buckets empty
        assignment = np.minimum(rng.geometric(0.3, (repetitions, classes)) - 1, buckets - 1)
    else:
        assignment = rng.integers(0, buckets, (repetitions, classes))
    return BucketTable.from_assignment(assignment, buckets), assignment


def check(result, expected_classes, expected_scores):
    np.testing.assert_array_equal(result.classes, expected_classes)
    np.testing.assert_array_equal(result.scores, expected_scores)
    assert result.proven


@settings(max_examples=400, deadline=None)
@given(
    family=st.sampled_from(["hash", "random", "skewed"]),
    kind=st.sampled_from(KINDS),
    classes=st.integers(1, 3000),
    buckets=st.one_of(st.integers(1, 200), st.integers(1000, 1100)),
    repetitions=st.integers(1, 20),
    k=st.integers(1, 40),
    subset=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_scoring_every_product(
    family, kind, classes, buckets, repetitions, k, subset, seed
):
    rng = np.random.default_rng(seed)
    table, full = make_table(family, rng, classes, buckets, repetitions)
    chosen = np.arange(repetitions)
    if subset:
        chosen = np.sort(rng.permutation(repetitions)[: rng.integers(1, repetitions + 1)])
    scores = draw_scores(kind, rng, len(chosen), buckets)
    result = TopK(table, warm=False).search(scores, k, repetitions=chosen)
    check(result, *reference_top_k(scores, full, k, chosen))


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(["hash", "random", "skewed"]),
    kind=st.sampled_from(KINDS),
    classes=st.one_of(
        st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1]), st.integers(CHUNK, 4 * CHUNK)
    ),
    buckets=st.sampled_from([1, 7, 1100, 66_000]),
    repetitions=st.sampled_from([1, 4, 8, 17]),
    k=st.sampled_from([1, 100, 5000]),
    selectivity=st.sampled_from([None, 0.01, 0.5]),
    seed=st.integers(0, 2**31),
)
def test_products_beyond_what_is_added_up_together(
    family, kind, classes, buckets, repetitions, k, selectivity, seed
):
    rng = np.random.default_rng(seed)
    table, full = make_table(family, rng, classes, buckets, repetitions)
    scores = draw_scores(kind, rng, repetitions, buckets)
    mask, allowed = None, None
    if selectivity is not None:
        mask = rng.random(classes) < selectivity
        allowed = ProductSet.from_mask(mask)
    result = TopK(table, warm=False).search(scores, k, allowed=allowed)
    check(result, *reference_top_k(scores, full, k, allowed=mask))


@settings(max_examples=150, deadline=None)
@given(
    family=st.sampled_from(["hash", "random", "skewed"]),
    kind=st.sampled_from(KINDS),
    selectivity=st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999, 1.0]),
    blocked=st.sampled_from([0, 1, 40]),
    k=st.integers(1, 40),
    by_list=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_restricted_to_a_set(family, kind, selectivity, blocked, k, by_list, seed):
    rng = np.random.default_rng(seed)
    classes, buckets, repetitions = 2000, 50, 4
    table, full = make_table(family, rng, classes, buckets, repetitions)
    mask = rng.random(classes) < selectivity
    without = rng.integers(0, classes, blocked)
    allowed = ProductSet.from_mask(mask) & ProductSet.block(without, classes)
    mask[without] = False
    scores = draw_scores(kind, rng, repetitions, buckets)
    with mock.patch.object(engine, "_LISTED_SHARE", 1.0 if by_list else 0.0):
        result = TopK(table, warm=False).search(scores, k, allowed=allowed)
    check(result, *reference_top_k(scores, full, k, allowed=mask))


@pytest.mark.parametrize("family", ["hash", "random"])
@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5, 1.0])
def test_every_merge_rule(exponent, family):
    rng = np.random.default_rng(7)
    table, full = make_table(family, rng, 20_000, 300, 8)
    log_probabilities = log_softmax(rng.standard_t(1.5, size=(8, 300)) * 2)
    scores = MergeRule(exponent).transform(log_probabilities)
    check(TopK(table).search(scores, 100), *reference_top_k(scores, full, 100))


def test_a_set_of_all_products_costs_nothing():
    rng = np.random.default_rng(5)
    table, _full = make_table("hash", rng, 50_000, 500, 8)
    scores = draw_scores("peaked", rng, 8, 500)
    plain = TopK(table).search(scores, 20)
    everything = ProductSet.from_mask(np.ones(50_000, bool))
    original = TopK._allowed
    with mock.patch.object(TopK, "_allowed", autospec=True, side_effect=original) as asked:
        found = TopK(table, warm=False).search(scores, 20, allowed=everything)
    assert asked.call_args.args[1] is None
    check(found, plain.classes, plain.scores)
    assert found.candidates == plain.candidates


def test_few_products_allowed_are_all_that_is_looked_at():
    rng = np.random.default_rng(5)
    table, full = make_table("hash", rng, 50_000, 500, 8)
    scores = draw_scores("peaked", rng, 8, 500)
    some = rng.integers(0, 50_000, 300)
    found = TopK(table).search(scores, 20, allowed=ProductSet.allow(some, 50_000))
    assert found.candidates == len(np.unique(some))
    mask = np.isin(np.arange(50_000), some)
    check(found, *reference_top_k(scores, full, 20, allowed=mask))


def test_more_buckets_than_classes_and_k_at_least_classes():
    rng = np.random.default_rng(3)
    table, full = make_table("hash", rng, 10, 1000, 3)
    scores = draw_scores("peaked", rng, 3, 1000)
    result = TopK(table).search(scores, 50)
    assert len(result.classes) == 10
    check(result, *reference_top_k(scores, full, 50))


@pytest.mark.parametrize("classes", [5000, 70_000])
@pytest.mark.parametrize("family", ["hash", "random"])
def test_a_batch_is_the_queries_one_by_one(family, classes):
    rng = np.random.default_rng(5)
    table, full = make_table(family, rng, classes, 100, 4)
    scores = np.stack([draw_scores(kind, rng, 4, 100) for kind in KINDS])
    mask = rng.random(classes) < 0.3
    for allowed, expected in ((None, None), (ProductSet.from_mask(mask), mask)):
        found = TopK(table).search_batch(scores, 20, allowed=allowed)
        for one, result in zip(scores, found, strict=True):
            check(result, *reference_top_k(one, full, 20, allowed=expected))


def test_a_batch_with_a_bad_query_is_refused_and_an_empty_one_is_not():
    table, _ = make_table("hash", np.random.default_rng(0), 100, 20, 3)
    scores = np.zeros((4, 3, 20), np.float32)
    assert TopK(table).search_batch(scores[:0], 5) == []
    scores[2, 0, 0] = np.nan
    with pytest.raises(InvalidInput, match="NaN"):
        TopK(table).search_batch(scores, 5)


@pytest.mark.parametrize("family", ["hash", "random"])
def test_more_repetitions_than_whole_codes_add_up(family):
    rng = np.random.default_rng(7)
    table, full = make_table(family, rng, 2000, 50, 300)
    scores = draw_scores("peaked", rng, 300, 50)
    mask = rng.random(2000) < 0.1
    check(TopK(table).search(scores, 20), *reference_top_k(scores, full, 20))
    allowed = ProductSet.from_mask(mask)
    found = TopK(table).search(scores, 20, allowed=allowed)
    check(found, *reference_top_k(scores, full, 20, allowed=mask))


def test_scores_that_may_not_be_written_to():
    table, full = make_table("hash", np.random.default_rng(0), 100, 20, 3)
    scores = draw_scores("flat", np.random.default_rng(0), 3, 20)
    scores.flags.writeable = False
    check(TopK(table).search(scores, 5), *reference_top_k(scores, full, 5))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"scores": np.full((3, 20), np.nan, np.float32)}, "scores"),
        ({"scores": np.full((3, 20), np.inf, np.float32)}, "scores"),
        ({"scores": np.zeros((2, 20), np.float32)}, "scores"),
        ({"scores": np.zeros((3, 21), np.float32)}, "scores"),
        ({"k": 0}, "k"),
        ({"repetitions": np.array([0, 0, 1])}, "repetitions"),
        ({"repetitions": np.array([0, 1, 3])}, "repetitions"),
        ({"repetitions": np.array([-1, 1, 2])}, "repetitions"),
        ({"repetitions": np.array([], np.int64)}, "repetitions"),
        ({"allowed": ProductSet.from_mask(np.ones(99, np.bool_))}, "allowed"),
    ],
)
def test_mistakes_are_refused(change, field):
    table, _ = make_table("hash", np.random.default_rng(0), 100, 20, 3)
    arguments = {"scores": np.zeros((3, 20), np.float32), "k": 5, **change}
    with pytest.raises(InvalidInput) as raised:
        TopK(table).search(**arguments)
    assert raised.value.field == field


def test_one_nan_among_many_is_found():
    table, _ = make_table("hash", np.random.default_rng(0), 100, 20, 3)
    scores = np.zeros((3, 20), np.float32)
    scores[1, 7] = np.nan
    with pytest.raises(InvalidInput, match="NaN"):
        TopK(table).search(scores, 5)

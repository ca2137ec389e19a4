"""Every engine returns what scoring every product returns: same products, order and scores."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable, MergeRule, ProductSet, TopK, _plan, _search, _workspace, engine
from mach.merge._columns import SLICE, Slices
from mach.merge._plan import plan_affine
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


WAYS = ["tally", "ring", "bits", "proof", "scan", "filled"]
BY_BITS = 8  # members a bucket has for these to be searched by bit vector


def search(table, scores, k, *, way, **options):
    """Search in one of these ways, however few the products.

    To tally takes several parts of the products, little room and few buckets at first, so that
    all that happens at larger sizes happens.
    """
    small = {"_TALLIED": 700, "_FOUND": 90}
    with (
        mock.patch.multiple(
            _search,
            _WALK_FIXED=1e18 if way in ("scan", "filled") else -1.0,
            _WALK_BUCKET=0.0,
            _WALK_SHARE=1e18,
            _WALK_MOST=1e18,
            MOST_TALLIED_ROWS=0 if way in ("ring", "bits") else 128,
            _FIRST_BUCKETS=0.5,
            _SORTED_SHARE=1.0,
        ),
        mock.patch.multiple(_workspace, **small),
        mock.patch.object(_plan, "BY_BITS", BY_BITS if way in ("bits", "proof") else 1 << 62),
        mock.patch.object(engine, "_COLUMNS_BYTES", -1 if way == "filled" else 1 << 27),
    ):
        return TopK(table, warm=False).search(scores, k, **options)


def check(result, expected_classes, expected_scores):
    np.testing.assert_array_equal(result.classes, expected_classes)
    np.testing.assert_array_equal(result.scores, expected_scores)
    assert result.proven


@settings(max_examples=300, deadline=None)
@given(
    family=st.sampled_from(["hash", "random", "skewed"]),
    kind=st.sampled_from(KINDS),
    classes=st.integers(1, 3000),
    buckets=st.integers(1, 200),
    repetitions=st.integers(1, 8),
    k=st.integers(1, 40),
    subset=st.booleans(),
    way=st.sampled_from(WAYS),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_scoring_every_product(
    family, kind, classes, buckets, repetitions, k, subset, way, seed
):
    rng = np.random.default_rng(seed)
    table, full = make_table(family, rng, classes, buckets, repetitions)
    chosen = np.arange(repetitions)
    if subset:
        chosen = np.sort(rng.permutation(repetitions)[: rng.integers(1, repetitions + 1)])
    scores = draw_scores(kind, rng, len(chosen), buckets)
    result = search(table, scores, k, way=way, repetitions=chosen)
    check(result, *reference_top_k(scores, full, k, chosen))


@settings(max_examples=100, deadline=None)
@given(
    family=st.sampled_from(["hash", "random", "skewed"]),
    kind=st.sampled_from(KINDS),
    selectivity=st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999, 1.0]),
    k=st.integers(1, 40),
    way=st.sampled_from(WAYS),
    seed=st.integers(0, 2**31),
)
def test_restricted_to_a_set(family, kind, selectivity, k, way, seed):
    rng = np.random.default_rng(seed)
    classes, buckets, repetitions = 2000, 50, 4
    table, full = make_table(family, rng, classes, buckets, repetitions)
    mask = rng.random(classes) < selectivity
    scores = draw_scores(kind, rng, repetitions, buckets)
    result = search(table, scores, k, way=way, allowed=ProductSet.from_mask(mask))
    check(result, *reference_top_k(scores, full, k, allowed=mask))


@pytest.mark.parametrize("family", ["hash", "random"])
@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.5, 1.0])
def test_every_merge_rule(exponent, family):
    rng = np.random.default_rng(7)
    table, full = make_table(family, rng, 20_000, 300, 8)
    log_probabilities = log_softmax(rng.standard_t(1.5, size=(8, 300)) * 2)
    scores = MergeRule(exponent).transform(log_probabilities)
    for way in WAYS:
        result = search(table, scores, 100, way=way)
        check(result, *reference_top_k(scores, full, 100))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    buckets=st.integers(175, 300),
    repetitions=st.integers(1, 6),
    k=st.integers(1, 200),
    selectivity=st.sampled_from([None, 0.01, 0.5]),
    way=st.sampled_from(["bits", "proof"]),
    seed=st.integers(0, 2**31),
)
def test_buckets_of_many_products(kind, buckets, repetitions, k, selectivity, way, seed):
    """Large buckets intersect by bit vector."""
    rng = np.random.default_rng(seed)
    table, full = make_table("hash", rng, 30_000, buckets, repetitions)
    assert BY_BITS <= table.num_classes / buckets <= buckets
    scores = draw_scores(kind, rng, repetitions, buckets)
    mask, allowed = None, None
    if selectivity is not None:
        mask = rng.random(30_000) < selectivity
        allowed = ProductSet.from_mask(mask)
    result = search(table, scores, k, way=way, allowed=allowed)
    check(result, *reference_top_k(scores, full, k, allowed=mask))


@pytest.mark.parametrize(
    ("way", "part"), [("tally", 10), ("ring", 20), ("bits", 20), ("proof", 20)]
)
def test_a_search_over_peaked_scores_looks_at_few_products(way, part):
    rng = np.random.default_rng(11)
    table, full = make_table("hash", rng, 300_000, 3000, 16)
    related = rng.integers(0, 300_000, 300)
    scores = rng.normal(size=(16, 3000))
    for repetition in range(16):
        scores[repetition, full[repetition, related]] += 5
    scores = log_softmax(scores)
    result = search(table, scores, 50, way=way)
    check(result, *reference_top_k(scores, full, 50))
    assert result.candidates < 16 * 300_000 / part
    assert result.bound < result.scores[-1]
    seen = np.isin(np.arange(300_000), result.classes)
    best_unseen = reference_top_k(scores, full, 1, allowed=~seen)[1][0]
    assert best_unseen <= result.scores[-1]


def test_a_set_of_all_products_costs_nothing():
    rng = np.random.default_rng(5)
    table, _full = make_table("hash", rng, 50_000, 500, 8)
    scores = draw_scores("peaked", rng, 8, 500)
    plain = search(table, scores, 20, way="tally")
    everything = ProductSet.from_mask(np.ones(50_000, bool))
    with mock.patch.object(ProductSet, "as_bitmap", side_effect=AssertionError):
        found = search(table, scores, 20, way="tally", allowed=everything)
    check(found, plain.classes, plain.scores)
    assert found.candidates == plain.candidates


def test_more_buckets_than_classes_and_k_at_least_classes():
    rng = np.random.default_rng(3)
    table, full = make_table("hash", rng, 10, 1000, 3)
    scores = draw_scores("peaked", rng, 3, 1000)
    result = TopK(table).search(scores, 50)
    assert len(result.classes) == 10
    check(result, *reference_top_k(scores, full, 50))


@pytest.mark.parametrize("kept", [1 << 27, -1])
@pytest.mark.parametrize("classes", [5000, 70_000])
@pytest.mark.parametrize("family", ["hash", "random"])
def test_a_batch_is_the_queries_one_by_one(family, classes, kept, monkeypatch):
    monkeypatch.setattr(engine, "_COLUMNS_BYTES", kept)
    rng = np.random.default_rng(5)
    table, full = make_table(family, rng, classes, 100, 4)
    scores = np.stack([draw_scores(kind, rng, 4, 100) for kind in KINDS])
    for one, result in zip(scores, TopK(table).search_batch(scores, 20), strict=True):
        check(result, *reference_top_k(one, full, 20))


@pytest.mark.parametrize("buckets", [1, 7, 4096, 65_536, 70_001, 100_000])
@pytest.mark.parametrize("family", ["hash", "random"])
def test_slices_are_filled_with_every_products_buckets(family, buckets):
    rng = np.random.default_rng(buckets)
    table, full = make_table(family, rng, 50_000, buckets, 4)
    for chosen in ([0, 1, 2, 3], [2]):
        rows = np.array(chosen)
        plan = TopK(table, warm=False)._plan(rows).compiled
        slices = Slices(len(rows), table.dtype)
        for start, stop in ((0, SLICE), (SLICE, 2 * SLICE), (49_000, 50_000), (3, 4), (0, 5000)):
            found = slices.at(plan, start, stop)[:, : stop - start]
            np.testing.assert_array_equal(found, full[rows, start:stop])


@pytest.mark.parametrize("kept", [1 << 27, -1])
@pytest.mark.parametrize("family", ["hash", "random"])
def test_lists_of_products_in_batches_and_after_whole_slices(family, kept, monkeypatch):
    monkeypatch.setattr(engine, "_COLUMNS_BYTES", kept)
    rng = np.random.default_rng(6)
    table, full = make_table(family, rng, 300_000, 1000, 3)
    top_k = TopK(table)
    scores = np.stack([draw_scores(kind, rng, 3, 1000) for kind in KINDS])
    masks = [rng.random(300_000) < share for share in (0.1, 0.001, 0.1)]
    for mask in (None, *masks, None):
        allowed = None if mask is None else ProductSet.from_mask(mask)
        assert allowed is None or allowed.listed is not None
        found = top_k.search_batch(scores, 30, allowed=allowed)
        for one, result in zip(scores, found, strict=True):
            check(result, *reference_top_k(one, full, 30, allowed=mask))
            alone = top_k.search(one, 30, allowed=allowed)
            np.testing.assert_array_equal(alone.classes, result.classes)


def test_more_repetitions_than_codes_add_up():
    rng = np.random.default_rng(7)
    table, full = make_table("hash", rng, 2000, 50, 300)
    scores = draw_scores("peaked", rng, 300, 50)
    mask = rng.random(2000) < 0.1
    check(TopK(table).search(scores, 20), *reference_top_k(scores, full, 20))
    allowed = ProductSet.from_mask(mask)
    found = TopK(table).search(scores, 20, allowed=allowed)
    check(found, *reference_top_k(scores, full, 20, allowed=mask))


def test_slices_of_the_largest_primes():
    hashes = UniversalHash.draw(2**31 - 2, 1000, 2, 0)
    table = BucketTable.from_hash(hashes, 2**31 - 2)
    slices, last = Slices(2, table.dtype), 2**31 - 2
    plan = plan_affine(table.hash, np.arange(2))
    found = slices.at(plan, last - 9000, last)[:, :9000]
    labels = np.arange(last - 9000, last)
    for repetition in range(2):
        np.testing.assert_array_equal(found[repetition], hashes.buckets(repetition, labels))


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


def test_plans_for_some_repetitions_are_kept_within_bounds(monkeypatch):
    table = BucketTable.from_hash(UniversalHash.draw(5000, 50, 8, 0), 5000)
    top_k = TopK(table)
    alone = top_k.index_bytes
    all_of_them = top_k._plan(None)
    size = top_k._plan([0, 1, 2]).nbytes
    assert size > 0
    monkeypatch.setattr(engine, "_PLANS_BYTES", 3 * size)
    for first in range(6):
        for second in range(first + 1, 7):
            top_k._plan([first, second, 7])
            top_k._plan([0, 1, 2])  # what is in use stays
    assert top_k._plan(None) is all_of_them
    assert top_k.index_bytes <= alone + 3 * size
    kept = top_k._plan([0, 1, 2])
    assert top_k._plan([0, 1, 2]) is kept
    monkeypatch.setattr(engine, "_PLANS_BYTES", 0)
    newest = top_k._plan([0, 7])
    assert top_k._plan([0, 7]) is newest
    assert len(top_k._plans) == 2


def test_a_plan_does_not_count_what_the_table_holds():
    table = BucketTable.from_assignment(np.arange(8 * 5000).reshape(8, 5000) % 50, 50)
    plan = TopK(table, warm=False)._plan([0, 1, 2])
    assert plan.nbytes == plan.sizes.nbytes == 3 * 50 * 8

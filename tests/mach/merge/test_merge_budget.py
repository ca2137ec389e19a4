"""A search within a budget says what it did not look at, and is right about it."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable, ProductSet, TopK, WorkBudget, _budget
from mach.merge._search import CHUNK
from mach.merge.reference import reference_scores, reference_top_k
from mach.merge.simulate import flat, trained_like

K, B, R = 40_000, 200, 8

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def table():
    hashing = UniversalHash.draw(K, B, R, 1)
    return BucketTable.from_hash(hashing, K), hashing.table()


@settings(max_examples=200, deadline=None)
@given(
    most=st.integers(1, 80_000),
    kind=st.sampled_from(["trained-like", "flat", "tied"]),
    explicit=st.booleans(),
    chunk=st.sampled_from([64, 4096, CHUNK]),
    selectivity=st.sampled_from([None, 0.5, 0.01]),
    seed=st.integers(0, 1000),
)
def test_the_bound_holds(table, most, kind, explicit, chunk, selectivity, seed):
    table, full = table
    rng = np.random.default_rng(seed)
    if kind == "tied":
        scores = rng.integers(-2, 1, (R, B)).astype(np.float32)
    else:
        scores = {"flat": flat, "trained-like": trained_like}[kind](table, 1, rng)[0]
    mask, allowed = np.ones(K, bool), None
    if selectivity is not None:
        mask = rng.random(K) < selectivity
        allowed = ProductSet.from_mask(mask)
    if explicit:
        table = BucketTable.from_assignment(full, B)
    budget = WorkBudget(max_candidates=most)
    with mock.patch.object(_budget, "CHUNK", chunk):
        result = TopK(table, warm=False).search(scores, 20, budget=budget, allowed=allowed)
    sums = reference_scores(scores, full)
    np.testing.assert_array_equal(result.scores, sums[result.classes])
    assert mask[result.classes].all()
    assert len(np.unique(result.classes)) == len(result.classes)
    order = np.lexsort((result.classes, -result.scores))
    np.testing.assert_array_equal(order, np.arange(len(order)))
    best, best_sums = reference_top_k(scores, full, 20, allowed=mask)
    if result.proven:
        np.testing.assert_array_equal(result.classes, best)
    else:
        # Whatever belongs among the best and is missing does not exceed the bound.
        missing = ~np.isin(best, result.classes)
        assert not missing.any() or best_sums[missing].max() <= result.bound
    assert result.candidates <= most


def test_what_may_be_best_is_looked_at_first(table):
    table, full = table
    rng = np.random.default_rng(4)
    scores = flat(table, 1, rng)[0]
    wanted = 31_234
    for repetition in range(R):
        scores[repetition, full[repetition, wanted]] += 5
    result = TopK(table).search(scores, 1, budget=WorkBudget(max_candidates=table.width))
    assert result.classes.tolist() == [wanted]
    assert result.proven
    assert result.candidates == table.width


def test_a_budget_that_suffices_changes_nothing(table):
    table, full = table
    scores = trained_like(table, 1, np.random.default_rng(0))[0]
    result = TopK(table).search(scores, 20, budget=WorkBudget(max_candidates=10**9, seconds=60))
    assert result.proven
    np.testing.assert_array_equal(result.classes, reference_top_k(scores, full, 20)[0])


def test_no_time_left_returns_at_once_with_what_there_is(table):
    table, full = table
    scores = flat(table, 1, np.random.default_rng(0))[0]
    result = TopK(table).search(scores, 20, budget=WorkBudget(seconds=1e-9))
    assert not result.proven
    assert result.candidates < K
    assert reference_top_k(scores, full, 1)[1][0] <= result.bound


@pytest.mark.parametrize(
    "arguments", [{"max_candidates": 0}, {"seconds": 0.0}, {"seconds": float("nan")}]
)
def test_a_budget_of_nothing_is_refused(arguments):
    with pytest.raises(InvalidInput):
        WorkBudget(**arguments)


def test_one_bucket_holds_every_product():
    hashing = UniversalHash.draw(K, 1, 4, 0)
    scores = np.array([[-1], [-2], [-3], [-4]], np.float32)
    engine = TopK(BucketTable.from_hash(hashing, K), warm=False)
    for budget in (None, WorkBudget(max_candidates=10 * K), WorkBudget(seconds=60)):
        result = engine.search(scores, 3, budget=budget)
        np.testing.assert_array_equal(result.classes, [0, 1, 2])
        np.testing.assert_array_equal(result.scores, [-10.0] * 3)


@pytest.mark.parametrize("classes", [1, 63, 64, 65, 513, 40_001])
def test_a_budget_of_all_products_is_enough_for_all(classes):
    hashing = UniversalHash.draw(classes, B, R, 1)
    engine = TopK(BucketTable.from_hash(hashing, classes))
    scores = np.random.default_rng(0).normal(size=(R, B)).astype(np.float32)
    result = engine.search(scores, 5, budget=WorkBudget(max_candidates=classes))
    assert result.proven
    np.testing.assert_array_equal(result.classes, reference_top_k(scores, hashing.table(), 5)[0])
    part = engine.search(scores, classes, budget=WorkBudget(max_candidates=max(1, classes - 1)))
    assert len(part.classes) == part.candidates == max(1, classes - 1)


def test_what_can_be_reached_is_added_up_as_scores_are():
    """A sum that rounds less, as sum() does from Python 3.12 on, may be below the best score."""
    rows, classes = 32, 40_000
    table = np.ones((rows, classes), np.int64)
    table[:, -1] = 0  # the best product
    rng = np.random.default_rng(3)
    for _ in range(20):
        scores = np.empty((rows, 2), np.float32)
        scores[:, 0] = -(10.0 ** rng.uniform(-8, 2, rows))
        scores[:, 1] = np.nextafter(scores[:, 0], -np.inf, dtype=np.float32)
        engine = TopK(BucketTable.from_assignment(table, 2), warm=False)
        exact = engine.search(scores, 1)
        found = engine.search(scores, 1, budget=WorkBudget(max_candidates=32_768))
        assert exact.classes.tolist() == [classes - 1]
        assert not found.proven
        assert found.bound >= exact.scores[0]
        whole = engine.search(scores, 1, budget=WorkBudget(seconds=60))
        np.testing.assert_array_equal(whole.classes, exact.classes)


def test_a_tie_in_a_block_that_was_not_looked_at_is_no_proof():
    width, buckets = 64, 200
    starts = np.array([[0, 100, 0, 0], [0, 100, 0, 0]], np.uint16)
    table = BucketTable(2 * width, buckets, width, starts)
    scores = np.full((2, buckets), -10, np.float32)
    scores[:, 5] = 1  # class 5: 2, which is its block's bound
    scores[:, 107] = 3, -1  # class 71: 2 as well, in a block that may have 3
    scores[1, 110] = 0
    with mock.patch.object(_budget, "CHUNK", width):
        found = TopK(table, warm=False).search(scores, 1, budget=WorkBudget(seconds=60))
        part = TopK(table, warm=False).search(scores, 1, budget=WorkBudget(max_candidates=width))
    assert found.classes.tolist() == [5]
    assert (part.classes.tolist(), part.proven, part.bound) == ([71], False, 2.0)

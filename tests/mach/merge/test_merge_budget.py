"""A search within a budget says what it did not look at, and is right about it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable, ProductSet, TopK, WorkBudget
from mach.merge.reference import reference_scores, reference_top_k
from mach.merge.simulate import flat, trained_like

K, B, R = 40_000, 200, 8

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def table():
    hashing = UniversalHash.draw(K, B, R, 1)
    return BucketTable.from_hash(hashing, K), hashing.table()


@settings(max_examples=100, deadline=None)
@given(
    most=st.integers(1, 80_000),
    kind=st.sampled_from(["trained-like", "flat"]),
    explicit=st.booleans(),
    selectivity=st.sampled_from([None, 0.5, 0.01]),
    seed=st.integers(0, 1000),
)
def test_the_bound_holds(table, most, kind, explicit, selectivity, seed):
    table, full = table
    rng = np.random.default_rng(seed)
    draw = flat if kind == "flat" else trained_like
    scores = draw(table, 1, rng)[0]
    mask, allowed = np.ones(K, bool), None
    if selectivity is not None:
        mask = rng.random(K) < selectivity
        allowed = ProductSet.from_mask(mask)
    if explicit:
        table = BucketTable.from_assignment(full, B)
    budget = WorkBudget(max_candidates=most)
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

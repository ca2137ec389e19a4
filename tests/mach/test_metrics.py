"""Ranking metrics against values worked out by hand and against a plain reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.evaluation import RankingMetrics, propensities


def scored(ranked, true, num_true=None, **options):
    metrics = RankingMetrics(**options)
    true = np.array(true, np.int64)
    metrics.add(np.array(ranked, np.int64), true, len(true) if num_true is None else num_true)
    return metrics.results()


def test_by_hand():
    got = scored([7, 3, 9], [3, 5], precision_at=(1, 3, 5), recall_at=(1, 3), ndcg_at=(3,))
    assert got["P@1"] == 0
    assert got["P@3"] == pytest.approx(1 / 3)
    assert got["P@5"] == pytest.approx(1 / 5)  # divides by k, though only three were found
    assert got["R@3"] == pytest.approx(1 / 2)
    assert got["nDCG@3"] == pytest.approx((1 / np.log2(3)) / (1 + 1 / np.log2(3)))


def test_products_unknown_to_the_catalog_stay_in_the_denominator():
    got = scored([3], [3], num_true=4)
    assert got["R@10"] == pytest.approx(1 / 4)
    assert got["P@1"] == 1


def test_nothing_found_and_nothing_true():
    assert scored([], [1])["P@1"] == 0
    empty = scored([1, 2], [])
    assert empty["P@1"] == 0


@given(st.permutations(range(30)), st.sets(st.integers(0, 29), min_size=1), st.integers(0, 3))
def test_against_a_plain_reference(ranked, true, unknown):
    got = scored(ranked, sorted(true), len(true) + unknown)
    for k in (1, 3, 5):
        assert got[f"P@{k}"] == pytest.approx(len(true & set(ranked[:k])) / k)
    for k in (10, 20, 100):
        assert got[f"R@{k}"] == pytest.approx(len(true & set(ranked[:k])) / (len(true) + unknown))
    gain = sum(1 / np.log2(i + 2) for i, c in enumerate(ranked[:10]) if c in true)
    ideal = sum(1 / np.log2(i + 2) for i in range(min(10, len(true) + unknown)))
    assert got["nDCG@10"] == pytest.approx(gain / ideal)


def test_propensity_scored_precision_rewards_the_tail():
    counts = np.array([1000, 1])
    weights = 1 / propensities(counts, 5000)
    assert weights[1] > weights[0] > 1
    head = scored([0, 9, 9, 9, 9], [0, 1], weights=np.append(weights, np.ones(8)))
    tail = scored([1, 9, 9, 9, 9], [0, 1], weights=np.append(weights, np.ones(8)))
    assert 0 < head["PSP@5"] < tail["PSP@5"] < 1
    both = scored([1, 0, 9, 9, 9], [0, 1], weights=np.append(weights, np.ones(8)))
    assert both["PSP@5"] == pytest.approx(1)

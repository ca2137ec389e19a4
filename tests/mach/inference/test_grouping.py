"""Rows that run together, and what that must not change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.features import SparseBatch
from mach.inference import RunCost, plan_groups

COST = RunCost(fixed=60e-6, row=8e-6, entry=0.1e-6)


def batch_of(lengths, num_features=50, seed=0):
    rng = np.random.default_rng(seed)
    return SparseBatch.from_rows(
        (rng.integers(0, num_features, n).astype(np.int32), rng.random(n, np.float32))
        for n in lengths
    )


def seconds(groups, lengths):
    return sum(
        COST.seconds(len(rows), len(rows) * max(1, *(lengths[i] for i in rows))) for rows in groups
    )


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=40),
    st.sampled_from([64, 512, 1 << 30]),
)
def test_every_row_runs_once_within_the_memory_allowed(lengths, max_entries):
    groups = plan_groups(batch_of(lengths), COST, max_entries)
    if groups is None:
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= max_entries
        return
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    for rows in groups:
        width = max(1, *(lengths[i] for i in rows))
        assert len(rows) == 1 or len(rows) * width <= max_entries
    if max_entries == 1 << 30:
        assert seconds(groups, lengths) <= seconds([range(len(lengths))], lengths) + 1e-12


def test_one_long_row_does_not_pad_the_others():
    groups = plan_groups(batch_of([8] * 63 + [1000]), COST, 1 << 30)
    assert sorted(map(len, groups)) == [1, 63]


def test_rows_of_like_length_run_together():
    assert plan_groups(batch_of([7, 8, 9, 8]), COST, 8192) is None
    assert plan_groups(batch_of([500]), COST, 64) is None


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.data())
def test_take_picks_rows(lengths, data):
    batch = batch_of(lengths)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=12))
    taken = batch.take(np.array(rows))
    for at, row in enumerate(rows):
        expected, got = batch.rows(row, row + 1), taken.rows(at, at + 1)
        np.testing.assert_array_equal(got.indices, expected.indices)
        np.testing.assert_array_equal(got.values, expected.values)


@pytest.mark.parametrize("lengths", [[3], [2, 2, 2], [0], [0, 3, 1]])
def test_padding(lengths):
    batch = batch_of(lengths)
    indices, values = batch.padded()
    assert indices.shape == values.shape == (len(lengths), max(1, *lengths))
    for row, length in enumerate(lengths):
        one = batch.rows(row, row + 1)
        np.testing.assert_array_equal(indices[row, :length], one.indices)
        np.testing.assert_array_equal(values[row, :length], one.values)
        assert not indices[row, length:].any()
        assert not values[row, length:].any()

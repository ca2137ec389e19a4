"""Every row runs once, in a shape that is kept ready wherever one fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import ConfigError
from mach.features import SparseBatch
from mach.inference.shapes import ShapePlan


def batch_of(lengths):
    return SparseBatch.from_rows(
        (np.full(n, i, np.int32), np.ones(n, np.float32)) for i, n in enumerate(lengths)
    )


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=70),
    st.integers(1, 40),
    st.lists(st.integers(1, 30), min_size=1, max_size=4, unique=True).map(sorted),
    st.integers(1, 200),
)
def test_every_row_runs_once_where_it_fits(lengths, max_rows, widths, max_entries):
    plan = ShapePlan.create(max_rows, widths, max_entries)
    parts = plan.parts(batch_of(lengths))
    assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(
        range(len(lengths))
    )
    shapes = set(plan.shapes())
    for part in parts:
        longest = max(lengths[row] for row in part.rows)
        assert len(part.rows) <= part.num_rows <= plan.max_rows
        assert longest <= part.width
        assert part.captured == (longest <= widths[-1])
        if part.captured:
            assert (part.num_rows, part.width) in shapes
            assert part.num_rows < 2 * len(part.rows)
        else:
            assert min(lengths[row] for row in part.rows) > widths[-1]
            assert len(part.rows) == 1 or part.num_rows * part.width <= max_entries


def test_a_batch_that_fits_is_one_run_in_its_own_order():
    (part,) = ShapePlan.create(8, (4, 16), 100).parts(batch_of([3, 9, 1, 0, 2]))
    np.testing.assert_array_equal(part.rows, np.arange(5))
    assert (part.num_rows, part.width, part.captured) == (8, 16, True)


def test_one_long_row_does_not_make_all_wide():
    short, long = ShapePlan.create(8, (4,), 100).parts(batch_of([3, 60, 1]))
    assert (short.rows.tolist(), short.width) == ([0, 2], 4)
    assert (long.rows.tolist(), long.num_rows, long.width, long.captured) == ([1], 1, 60, False)


def test_shapes_begin_with_the_largest():
    shapes = ShapePlan.create(3, (2, 8), 100).shapes()
    assert shapes == [(4, 8), (4, 2), (2, 8), (2, 2), (1, 8), (1, 2)]


@pytest.mark.parametrize(
    ("rows", "widths", "entries"),
    [(0, (4,), 9), (2, (), 9), (2, (0, 4), 9), (2, (4, 4), 9), (2, (8, 4), 9), (2, (4,), 0)],
)
def test_shapes_that_make_no_sense(rows, widths, entries):
    with pytest.raises(ConfigError, match="cuda shapes"):
        ShapePlan.create(rows, widths, entries)

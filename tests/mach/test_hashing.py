"""The hash family: blocks in consecutive buckets, independent starts, reproducible."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash, block_width

sizes = st.tuples(st.integers(1, 500), st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**32))


@given(sizes)
def test_a_block_lies_in_consecutive_buckets(size):
    num_classes, num_buckets, num_repetitions, seed = size
    hashes = UniversalHash.draw(num_classes, num_buckets, num_repetitions, seed)
    table = hashes.table()
    assert table.shape == (num_repetitions, num_classes)
    assert table.max() < num_buckets
    blocks, lanes = np.divmod(np.arange(num_classes), hashes.width)
    for repetition in range(num_repetitions):
        starts = hashes.starts(repetition, np.arange(hashes.num_blocks))
        np.testing.assert_array_equal(table[repetition], (starts[blocks] + lanes) % num_buckets)


@given(st.integers(1, 2**31 - 1))
def test_two_blocks_fit_the_buckets(num_buckets):
    width = block_width(num_buckets)
    assert width == 1 or 2 * width <= num_buckets
    assert width == 512 or 4 * width > num_buckets
    assert width & (width - 1) == 0


def test_starts_are_what_the_formula_says():
    """In whole numbers of any size, at the largest sizes there are."""
    q = 2**31 - 1
    for num_buckets in (3, 2**31 - 1):
        hashes = UniversalHash.draw(2**31 - 1, num_buckets, 2, seed=9)
        blocks = np.array([0, 1, hashes.num_blocks - 1])
        for repetition in range(2):
            a, b, c = hashes.coefficients[repetition].tolist()
            expected = [(a * x * x + b * x + c) % q * num_buckets // q for x in blocks.tolist()]
            assert hashes.starts(repetition, blocks).tolist() == expected


@given(sizes)
def test_manifest_round_trip(size):
    num_classes, num_buckets, num_repetitions, seed = size
    hashes = UniversalHash.draw(num_classes, num_buckets, num_repetitions, seed)
    again = UniversalHash.from_manifest(num_classes, num_buckets, hashes.to_manifest())
    np.testing.assert_array_equal(hashes.table(), again.table())


def test_buckets_are_about_equally_large():
    """As with independent buckets: a bucket has one product of each block that covers it."""
    for num_classes, num_buckets in ((38_267, 2_000), (1_000_000, 10_000)):
        table = UniversalHash.draw(num_classes, num_buckets, 50, seed=1).table()
        sizes = np.stack([np.bincount(row, minlength=num_buckets) for row in table])
        mean = num_classes / num_buckets
        assert sizes.std() == pytest.approx(mean**0.5, rel=0.2)


@pytest.mark.parametrize("num_blocks", [2, 3, 5, 300])
def test_any_two_products_collide_as_rarely_as_any_others(num_blocks):
    num_buckets, draws = 50, 4000
    width = block_width(num_buckets)
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, num_blocks * width, (400, 2))
    pairs = np.concatenate([pairs, [[width - 1, width], [0, width]]])
    hashes = UniversalHash.draw(num_blocks * width, num_buckets, draws, seed=3)
    same = np.stack(
        [hashes.buckets(r, pairs[:, 0]) == hashes.buckets(r, pairs[:, 1]) for r in range(draws)]
    )
    together = pairs[:, 0] // width == pairs[:, 1] // width
    rates = same.mean(axis=0)
    one = pairs[:, 0] == pairs[:, 1]
    assert (rates[one] == 1).all()
    assert not rates[together & ~one].any()
    apart = rates[~together]
    assert apart.mean() == pytest.approx(1 / num_buckets, rel=0.1)
    # Five standard deviations.
    assert np.abs(apart - 1 / num_buckets).max() < 5 * (1 / num_buckets / draws) ** 0.5


def test_three_products_collide_independently():
    """Whichever share a bucket with a third; in rows of equal distance, too."""
    num_buckets, draws = 20, 40_000
    hashes = UniversalHash.draw(5_000, num_buckets, draws, seed=8)
    width = hashes.width
    for distance in (width, width + 1, 3 * width + 2, 50 * width):
        three = np.array([0, distance, 2 * distance])
        found = np.stack([hashes.buckets(r, three) for r in range(draws)])
        both = (found[:, 0] == found[:, 1]) & (found[:, 0] == found[:, 2])
        expected = draws / num_buckets**2
        assert abs(both.sum() - expected) < 5 * expected**0.5


def test_a_merged_scores_variance_is_no_larger_than_under_independent_buckets():
    """What collides with a product, by weight, however the weights lie; docs/merge.md."""
    num_classes, num_buckets, draws = 3_000, 20, 5_000
    hashes = UniversalHash.draw(num_classes, num_buckets, draws, seed=5)
    width = hashes.width
    product = 1_234
    sets = (
        np.arange(product + 1, product + 1 + 5 * width),  # neighbours
        product + (width + 1) * np.arange(1, 60),  # a row of equal distance
        np.random.default_rng(0).integers(0, num_classes, 60),
    )
    for drawn in sets:
        others = np.unique(drawn[drawn != product])
        colliding = [
            (hashes.buckets(r, others) == hashes.buckets(r, product)).sum() for r in range(draws)
        ]
        independent = len(others) * (1 / num_buckets) * (1 - 1 / num_buckets)
        assert np.var(colliding) < 1.1 * independent


def test_repetitions_collide_independently():
    """Two products that share a bucket in one repetition share one in another no more often."""
    hashes = UniversalHash.draw(5_003, 20, 2000, seed=4)
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, 5_003, (2, 3000))
    left, right = left[left != right], right[left != right]
    both = np.mean(
        [
            (hashes.buckets(r, left) == hashes.buckets(r, right))
            & (hashes.buckets(r + 1, left) == hashes.buckets(r + 1, right))
            for r in range(0, 2000, 2)
        ]
    )
    assert both == pytest.approx(1 / 20**2, rel=0.05)


def test_more_repetitions_keep_the_first_ones():
    few = UniversalHash.draw(1_000, 32, 2, seed=5).table()
    many = UniversalHash.draw(1_000, 32, 6, seed=5).table()
    np.testing.assert_array_equal(few, many[:2])
    assert (UniversalHash.draw(1_000, 32, 2, seed=6).table() != few).any()


@pytest.mark.parametrize(
    ("sizes", "field"),
    [((0, 1, 1), "num_classes"), ((1, 0, 1), "num_buckets"), ((1, 1, 0), "num_repetitions")],
)
def test_sizes_below_one_are_named(sizes, field):
    with pytest.raises(InvalidInput, match=field):
        UniversalHash.draw(*sizes, seed=0)


@pytest.mark.parametrize(
    "change",
    [
        {"family": "md5"},
        {"width": 3},
        {"width": 0},
        {"width": 16},
        {"width": None},
        {"coefficients": []},
        {"coefficients": None},
        {"coefficients": [[1, 2]]},
        {"coefficients": [[1, 2, 2**31 - 1]]},
        {"coefficients": [[1, 2, -1]]},
        {"coefficients": [[1, 2, "c"]]},
        {"coefficients": [[1, 2, float("inf")]]},
    ],
)
def test_a_damaged_manifest_entry_is_refused(change):
    entry = UniversalHash.draw(97, 10, 1, seed=0).to_manifest() | change
    with pytest.raises(InvalidInput):
        UniversalHash.from_manifest(97, 10, entry)

"""The hash family: 2-universal, balanced, reproducible, and its inverse is right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash, block_width, smallest_prime_from

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
    hashes = UniversalHash.draw(2**31 - 1, 2**31 - 1, 2, seed=9)
    blocks = np.array([0, 1, hashes.num_blocks - 1])
    p, q = hashes.prime, 2**31 - 1
    for repetition in range(2):
        a, b, c, d = (
            int(part[repetition])
            for part in (
                hashes.multipliers,
                hashes.offsets,
                hashes.jitter_multipliers,
                hashes.jitter_offsets,
            )
        )
        expected = [
            (((a * x + b) % p * q + (c * x + d) % q) * hashes.num_buckets) // (p * q)
            for x in blocks.tolist()
        ]
        assert hashes.starts(repetition, blocks).tolist() == expected


@given(sizes)
def test_manifest_round_trip(size):
    num_classes, num_buckets, num_repetitions, seed = size
    hashes = UniversalHash.draw(num_classes, num_buckets, num_repetitions, seed)
    again = UniversalHash.from_manifest(num_classes, num_buckets, hashes.to_manifest())
    np.testing.assert_array_equal(hashes.table(), again.table())


@given(st.integers(0, 10**6))
def test_primes_agree_with_trial_division(n):
    prime = smallest_prime_from(n)
    assert prime >= max(n, 2)
    for candidate in range(max(n, 2), prime + 1):
        divides = any(candidate % d == 0 for d in range(2, int(candidate**0.5) + 1))
        assert divides == (candidate != prime)


def test_large_primes():
    assert smallest_prime_from(2**31 - 1) == 2**31 - 1
    assert smallest_prime_from(10**12) == 10**12 + 39


def test_buckets_are_balanced():
    table = UniversalHash.draw(38_267, 2_000, 8, seed=1).table()
    for row in table:
        sizes = np.bincount(row, minlength=2_000)
        assert sizes.max() - sizes.min() <= 8  # independent buckets: about 30


def test_collisions_are_as_rare_as_two_universality_says():
    num_classes, num_buckets = 5_003, 50
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, num_classes, (400, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    hashes = UniversalHash.draw(num_classes, num_buckets, 4000, seed=3)
    same = np.stack(
        [hashes.buckets(r, pairs[:, 0]) == hashes.buckets(r, pairs[:, 1]) for r in range(4000)]
    )
    assert same.mean() == pytest.approx(1 / num_buckets, rel=0.05)
    # No two products collide much more often than any others: five standard deviations.
    assert same.mean(axis=0).max() < 1 / num_buckets + 5 * (1 / num_buckets / 4000) ** 0.5
    together = pairs[:, 0] // hashes.width == pairs[:, 1] // hashes.width
    assert not same[:, together].any()


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
        {"prime": 100},
        {"prime": 11},
        {"prime": "p"},
        {"prime": float("inf")},
        {"width": 3},
        {"width": 0},
        {"width": 16},
        {"width": None},
        {"multipliers": [0]},
        {"multipliers": []},
        {"multipliers": None},
        {"offsets": [10**9]},
        {"offsets": [1, 2]},
        {"jitter_multipliers": [0]},
        {"jitter_offsets": [2**31 - 1]},
        {"jitter_offsets": [-1]},
    ],
)
def test_a_damaged_manifest_entry_is_refused(change):
    entry = UniversalHash.draw(97, 10, 1, seed=0).to_manifest() | change
    with pytest.raises(InvalidInput):
        UniversalHash.from_manifest(97, 10, entry)

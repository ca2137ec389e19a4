"""The hash family: 2-universal, balanced, reproducible, and its inverse is right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash, smallest_prime_from

sizes = st.tuples(st.integers(1, 500), st.integers(1, 60), st.integers(1, 5), st.integers(0, 2**32))


@given(sizes)
def test_inverse_by_arithmetic_is_the_inverse_of_the_table(size):
    num_classes, num_buckets, num_repetitions, seed = size
    hashes = UniversalHash.draw(num_classes, num_buckets, num_repetitions, seed)
    table = hashes.table()
    assert table.shape == (num_repetitions, num_classes)
    for repetition in range(num_repetitions):
        for bucket in range(num_buckets):
            expected = np.flatnonzero(table[repetition] == bucket)
            np.testing.assert_array_equal(hashes.members(repetition, bucket), expected)


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
        assert sizes.max() - sizes.min() <= 4


def test_collisions_are_as_rare_as_two_universality_says():
    num_classes, num_buckets = 2_003, 50
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, num_classes, (400, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    hashes = UniversalHash.draw(num_classes, num_buckets, 400, seed=3)
    left = np.stack([hashes.buckets(r, pairs[:, 0]) for r in range(400)])
    right = np.stack([hashes.buckets(r, pairs[:, 1]) for r in range(400)])
    rate = (left == right).mean()
    assert rate == pytest.approx(1 / num_buckets, rel=0.05)


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
        {"multipliers": [0]},
        {"offsets": [10**9]},
        {"multipliers": []},
        {"multipliers": None},
        {"prime": "p"},
        {"prime": float("inf")},
    ],
)
def test_a_damaged_manifest_entry_is_refused(change):
    entry = UniversalHash.draw(97, 10, 1, seed=0).to_manifest() | change
    with pytest.raises(InvalidInput):
        UniversalHash.from_manifest(97, 10, entry)

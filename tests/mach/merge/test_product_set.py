"""Sets of products: every way to make one, and what searching within it returns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable, ProductSet, TopK
from mach.merge.reference import reference_top_k

K, B, R = 3000, 60, 4


def mask_of(products):
    return np.array([label in products for label in range(products.num_classes)])


@st.composite
def sets(draw):
    """A product set over 40 products and the classes in it."""
    classes = draw(st.lists(st.integers(0, 39), max_size=40))
    kind = draw(st.sampled_from(["mask", "allow", "block"]))
    mask = np.zeros(40, np.bool_)
    mask[classes] = True
    if kind == "mask":
        return ProductSet.from_mask(mask), mask
    if kind == "allow":
        return ProductSet.allow(classes, 40), mask
    return ProductSet.block(classes, 40), ~mask


@settings(max_examples=200, deadline=None)
@given(one=sets(), other=sets())
def test_intersection(one, other):
    (one_set, one_mask), (other_set, other_mask) = one, other
    both = one_set & other_set
    assert both.size == np.count_nonzero(one_mask & other_mask)
    np.testing.assert_array_equal(mask_of(both), one_mask & other_mask)
    np.testing.assert_array_equal(mask_of(one_set), one_mask)


@pytest.fixture(scope="module")
def products():
    hashing = UniversalHash.draw(K, B, R, 3)
    scores = np.random.default_rng(0).normal(size=(R, B)).astype(np.float32)
    return TopK(BucketTable.from_hash(hashing, K)), hashing.table(), scores


@pytest.mark.parametrize("count", [0, 1, 7, 300, 2990, K])
def test_searching_within_a_list_and_around_a_block(products, count):
    engine, table, scores = products
    classes = np.random.default_rng(count).permutation(K)[:count]
    mask = np.zeros(K, np.bool_)
    mask[classes] = True
    thirds = np.arange(K) % 3 == 0
    for allowed, expected in (
        (ProductSet.allow(classes, K), mask),
        (ProductSet.block(classes, K), ~mask),
        (ProductSet.from_mask(mask), mask),
        (ProductSet.from_mask(mask) & ProductSet.block(np.flatnonzero(thirds), K), mask & ~thirds),
    ):
        result = engine.search(scores, 20, allowed=allowed)
        best, sums = reference_top_k(scores, table, 20, allowed=expected)
        np.testing.assert_array_equal(result.classes, best)
        np.testing.assert_array_equal(result.scores, sums)


def test_the_best_products_blocked(products):
    engine, table, scores = products
    best = reference_top_k(scores, table, 30)[0]
    result = engine.search(scores, 10, allowed=ProductSet.block(best[:15], K))
    np.testing.assert_array_equal(result.classes, best[15:25])


@pytest.mark.parametrize("classes", [[-1], [K], [0.5], [[1, 2]]])
def test_classes_out_of_range_are_refused(classes):
    with pytest.raises(InvalidInput, match=r"^classes: "):
        ProductSet.allow(classes, K)


def test_a_small_set_takes_memory_by_its_size_not_by_the_catalogs():
    for products in (ProductSet.allow([5, 3, 5], 10**9), ProductSet.block([5, 3], 10**9)):
        assert products.bitmap is None
    assert ProductSet.allow([5, 3, 5], 10**9).size == 2
    assert ProductSet.block([5, 3], 10**9).size == 10**9 - 2


def test_sets_of_different_catalogs_do_not_intersect():
    with pytest.raises(InvalidInput):
        ProductSet.allow([1], 10) & ProductSet.allow([1], 11)


def test_a_long_list_is_kept_as_bits():
    """So that most of a catalog by its ids is searched as fast as the same by a condition."""
    few, many = ProductSet.allow(range(K // 8), K), ProductSet.allow(range(K // 8 + 1), K)
    assert few.listed is not None and few.bitmap is None
    assert many.listed is None and many.bitmap is not None
    assert many.size == K // 8 + 1
    assert K // 8 in many and K // 8 + 1 not in many


def test_what_is_no_class_is_in_no_set():
    for products in (ProductSet.allow([5], K), ProductSet.block([5], K)):
        assert [label in products for label in (-1, K, 2**40)] == [False] * 3

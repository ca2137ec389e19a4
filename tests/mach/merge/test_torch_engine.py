"""The engine on torch returns what the one on NumPy defines, on whatever device there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable, ProductSet
from mach.merge.reference import reference_top_k

torch = pytest.importorskip("torch")
from mach.merge.torch_engine import TorchTopK  # noqa: E402 - needs torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=80, deadline=None)
@given(
    hashed=st.booleans(),
    steps=st.sampled_from([None, 2, 20]),
    chunk=st.sampled_from([1, 64, 5000]),
    classes=st.integers(1, 400),
    buckets=st.sampled_from([1, 7, 300, 70_000]),
    repetitions=st.integers(1, 5),
    k=st.integers(1, 60),
    selectivity=st.sampled_from([None, 0.0, 0.1, 0.9]),
    seed=st.integers(0, 2**31),
)
def test_agrees_with_the_reference(
    device, hashed, steps, chunk, classes, buckets, repetitions, k, selectivity, seed
):
    rng = np.random.default_rng(seed)
    if hashed:
        hashing = UniversalHash.draw(classes, buckets, repetitions, seed)
        table, full = BucketTable.from_hash(hashing, classes), hashing.table()
    else:
        full = rng.integers(0, buckets, (repetitions, classes))
        table = BucketTable.from_assignment(full, buckets)
    rows = np.sort(rng.permutation(repetitions)[: rng.integers(1, repetitions + 1)])
    scores = rng.normal(size=(len(rows), buckets))
    if steps is not None:
        scores = np.round(scores * steps) / steps  # exact ties
    scores = scores.astype(np.float32)
    scores[rng.random(scores.shape) < 0.05] = -np.inf
    mask, allowed = None, None
    if selectivity is not None:
        mask = rng.random(classes) < selectivity
        allowed = ProductSet.from_mask(mask)
    result = TorchTopK(table, device, chunk=chunk).search(
        scores, k, repetitions=rows, allowed=allowed
    )
    expected, sums = reference_top_k(scores, full, k, rows, mask)
    np.testing.assert_array_equal(result.classes, expected)
    np.testing.assert_array_equal(result.scores, sums)
    assert result.proven


def test_mistakes_are_refused():
    table = BucketTable.from_hash(UniversalHash.draw(50, 10, 2, 0), 50)
    engine = TorchTopK(table, "cpu")
    for scores in (np.full((2, 10), np.nan), np.full((2, 10), np.inf), np.zeros((2, 11))):
        with pytest.raises(InvalidInput, match=r"^scores: "):
            engine.search(scores, 5)
    with pytest.raises(InvalidInput, match=r"^k: "):
        engine.search(np.zeros((2, 10)), 0)

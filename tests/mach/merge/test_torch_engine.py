"""The engine on torch returns what the one on NumPy defines, on whatever device there is."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable, ProductSet
from mach.merge.reference import reference_top_k
from mach.merge.simulate import trained_like

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run in Python: slow, but where there is no GPU
from mach.merge._torch_codes import encode  # noqa: E402 - needs torch
from mach.merge.torch_engine import TorchTopK  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=80, deadline=None)
@given(
    hashed=st.booleans(),
    steps=st.sampled_from([None, 2, 20]),
    chunk=st.sampled_from([1, 64, 5000]),
    classes=st.integers(1, 400),
    buckets=st.sampled_from([1, 7, 300, 50_000, 70_000]),
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("chunk", [100, 3000])  # less than a wide block, and more than any
@pytest.mark.parametrize("buckets", [1, 7, 300, 2000, 65_536, 70_000])
def test_buckets_on_the_device_are_the_tables(device, hashed, chunk, buckets):
    hashing = UniversalHash.draw(5000, buckets, 3, 0)
    full = hashing.table()
    table = BucketTable.from_hash(hashing, 5000)
    if not hashed:
        table = BucketTable.from_assignment(full, buckets)
    columns = TorchTopK(table, device, chunk=chunk)._columns
    np.testing.assert_array_equal(columns.cpu().numpy().view(table.dtype), full)


def peaked(rng, shape, steps):
    """Scores with few high buckets, as classifiers give; ``steps`` makes exact ties."""
    scores = -8 + rng.normal(scale=0.5, size=shape)
    scores[rng.random(shape) < 0.05] += 6
    return (scores if steps is None else np.round(scores * steps) / steps).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=25)
@given(
    hashed=st.booleans(),
    steps=st.sampled_from([None, 2, 20]),
    group=st.sampled_from([1, 3, 32]),
    queries=st.integers(0, 9),
    classes=st.integers(1, 700),
    buckets=st.sampled_from([1, 7, 300, 50_000, 70_000]),
    repetitions=st.integers(1, 6),
    k=st.integers(1, 20),
    selectivity=st.sampled_from([None, 0.0, 0.3, 0.9]),
    infinite=st.sampled_from([0.0, 0.05, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_batches_agree_with_the_reference(
    device, hashed, steps, group, queries, classes, buckets, repetitions, k, selectivity,
    infinite, seed,
):  # fmt: skip
    rng = np.random.default_rng(seed)
    hashing = UniversalHash.draw(classes, buckets, repetitions, seed)
    full = hashing.table()
    table = BucketTable.from_hash(hashing, classes)
    if not hashed:
        table = BucketTable.from_assignment(full, buckets)
    rows = np.sort(rng.permutation(repetitions)[: rng.integers(1, repetitions + 1)])
    scores = peaked(rng, (queries, len(rows), buckets), steps)
    scores[rng.random(scores.shape) < infinite] = -np.inf
    mask, allowed = None, None
    if selectivity is not None:
        mask = rng.random(classes) < selectivity
        allowed = ProductSet.from_mask(mask)
    engine = TorchTopK(table, device, group=group, batched_from=1, chunk=300)
    found = engine.search_batch(torch.from_numpy(scores), k, repetitions=rows, allowed=allowed)
    assert len(found) == queries
    for one, result in zip(scores, found, strict=True):
        expected, sums = reference_top_k(one, full, k, rows, mask)
        np.testing.assert_array_equal(result.classes, expected)
        np.testing.assert_array_equal(result.scores, sums)


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.parametrize(
    ("classes", "buckets", "rows", "num_words", "stride", "listed"),
    [
        (300, 40, 5, 1, 1, False),
        (300, 50_000, 4, 2, 1, False),
        (300, 70_000, 4, 2, 1, False),
        (500, 7, 3, 8, 3, False),
        (400, 90, 8, 4, 2, True),
        (128, 9, 1, 1, 1, True),
    ],
)
def test_the_kernel_does_what_plain_torch_does(classes, buckets, rows, num_words, stride, listed):
    from mach.merge import _torch_scan, _triton_scan

    device = DEVICES[-1]
    rng = np.random.default_rng(classes)
    kind = np.int16 if buckets <= 65_536 else np.int32
    columns = rng.integers(0, buckets, (rows + 2, classes)).astype(np.uint32).astype(kind)
    ids = np.sort(rng.permutation(classes)[: classes // 2]).astype(np.int32) if listed else None
    codes = rng.integers(0, 256, (rows, buckets, 4 * num_words)).astype(np.uint8)
    products = _torch_scan.Products(
        torch.from_numpy(columns).to(device),
        torch.arange(2, rows + 2, dtype=torch.int32, device=device),
        None if ids is None else torch.from_numpy(ids).to(device),
        stride,
        (classes if ids is None else len(ids)) // stride,
    )
    words = torch.from_numpy(codes).to(device).view(torch.int32)
    expected = _torch_scan.code_sums(products, words)
    torch.testing.assert_close(_triton_scan.code_sums(products, words), expected, rtol=0, atol=0)

    ranked = expected.sort(dim=1, descending=True).values
    least = ranked[:, ranked.shape[1] // 5].contiguous()
    least[-1] = 2**31 - 1  # reached by none
    counts, found = _torch_scan.code_hits(products, words, least, 2000)
    kernel_counts, kernel_found = _triton_scan.code_hits(products, words, least, 2000)
    torch.testing.assert_close(kernel_counts, counts, rtol=0, atol=0)
    for query, count in enumerate(counts.tolist()):
        assert set(kernel_found[query, :count].tolist()) == set(found[query, :count].tolist())
    assert counts[-1] == 0 < counts[0]

    short_counts, short = _triton_scan.code_hits(products, words, least, 3)
    torch.testing.assert_close(short_counts, counts, rtol=0, atol=0)  # counted, not written
    assert short.shape == (4 * num_words, 3)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("hits", [True, False])
def test_the_kernel_compiles_for_a_gpu(hits, tmp_path):
    """Without a GPU: to the instructions of an H100, among them loads of 16 bytes."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.mach.merge.compile_kernel", str(int(hits))],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ".target sm_90" in done.stdout
    assert "v4.b32" in done.stdout
    assert ("atom.global" in done.stdout) == hits


@needs_triton
def test_an_engine_on_the_kernel():
    hashing = UniversalHash.draw(900, 60, 6, 0)
    table = BucketTable.from_hash(hashing, 900)
    scores = peaked(np.random.default_rng(0), (5, 6, 60), None)
    engine = TorchTopK(table, DEVICES[-1], kernel="triton", batched_from=1)
    for one, result in zip(scores, engine.search_batch(scores, 7), strict=True):
        np.testing.assert_array_equal(result.classes, reference_top_k(one, hashing.table(), 7)[0])


def test_most_products_are_ruled_out_by_codes(monkeypatch):
    """A batch of a trained model's scores is settled in its pass, on few products' exact sums."""
    classes, buckets, repetitions = 60_000, 500, 16
    hashing = UniversalHash.draw(classes, buckets, repetitions, 0)
    table = BucketTable.from_hash(hashing, classes)
    scores = trained_like(table, 3, np.random.default_rng(0))
    engine = TorchTopK(table, "cpu", batched_from=1)
    monkeypatch.setattr(engine, "_search_one", None)  # not called
    counted = []
    exact = engine._exact
    monkeypatch.setattr(engine, "_exact", lambda *a: (counted.append(a[2].shape[1]), exact(*a))[1])
    found = engine.search_batch(scores, 10)
    assert counted[0] == 10 and counted[1] < classes / 8
    for one, result in zip(scores, found, strict=True):
        np.testing.assert_array_equal(result.classes, reference_top_k(one, hashing.table(), 10)[0])


def test_a_query_that_codes_cannot_settle_is_searched_alone(monkeypatch):
    hashing = UniversalHash.draw(5000, 50, 3, 0)
    engine = TorchTopK(BucketTable.from_hash(hashing, 5000), "cpu", batched_from=1)
    scores = peaked(np.random.default_rng(0), (3, 3, 50), None)
    scores[1] = 1.0  # all products tie: more than can be written down
    monkeypatch.setattr("mach.merge.torch_engine._LEAST_ROOM", 1)
    alone = []
    search_one = engine._search_one
    monkeypatch.setattr(engine, "_search_one", lambda *a: (alone.append(1), search_one(*a))[1])
    found = engine.search_batch(scores, 5)
    assert len(alone) == 1
    for one, result in zip(scores, found, strict=True):
        np.testing.assert_array_equal(result.classes, reference_top_k(one, hashing.table(), 5)[0])


@given(
    st.integers(1, 9), st.integers(1, 5), st.integers(1, 40), st.sampled_from([1e-20, 1.0, 1e20]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_codes_bound_scores_from_above(queries, rows, buckets, size, seed):
    rng = np.random.default_rng(seed)
    scores = (rng.normal(size=(queries, rows, buckets)) * size).astype(np.float32)
    codes = encode(torch.from_numpy(scores), (queries + 3) // 4)
    assert codes.usable.all() or buckets * rows == rows
    numbers = codes.words.numpy().view(np.uint8).reshape(rows, buckets, -1)[:, :, :queries]
    floors = scores.min(axis=2).astype(np.float64)
    bounds = floors[:, :, None] + codes.step.numpy()[:, None, None] * numbers.transpose(2, 0, 1)
    usable = codes.usable.numpy()
    assert (bounds >= scores)[usable].all()
    assert (bounds - scores <= 1.001 * codes.step.numpy()[:, None, None])[usable].all()


def test_mistakes_are_refused():
    table = BucketTable.from_hash(UniversalHash.draw(50, 10, 2, 0), 50)
    engine = TorchTopK(table, "cpu")
    for scores in (np.full((2, 10), np.nan), np.full((2, 10), np.inf), np.zeros((2, 11))):
        with pytest.raises(InvalidInput, match=r"^scores: "):
            engine.search(scores, 5)
    with pytest.raises(InvalidInput, match=r"^group: "):
        TorchTopK(table, "cpu", group=0)
    with pytest.raises(InvalidInput, match=r"^k: "):
        engine.search(np.zeros((2, 10)), 0)

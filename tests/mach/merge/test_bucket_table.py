"""The table: over a hash or an assignment, on disk and back."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mach.errors import BundleError, InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable, MergeRule, ProductSet, TopK
from mach.merge.reference import reference_top_k

K, B, R = 2000, 30, 3

pytestmark = pytest.mark.timeout(900)


def hashed():
    hashing = UniversalHash.draw(K, B, R, 5)
    return BucketTable.from_hash(hashing, K), hashing.table()


def assigned(buckets=B):
    full = np.random.default_rng(2).integers(0, buckets, (R, K))
    return BucketTable.from_assignment(full, buckets), full


@pytest.mark.parametrize("make", [hashed, assigned])
def test_buckets_of_some_products_and_of_all(make):
    table, full = make()
    classes = np.array([0, 7, K - 1, 7])
    np.testing.assert_array_equal(table.rows(classes), full[:, classes].T)
    np.testing.assert_array_equal(table.columns(), full)


@pytest.mark.parametrize("make", [hashed, assigned, lambda: assigned(70_000)])
def test_saved_and_mapped(make, tmp_path):
    table, full = make()
    path = tmp_path / "buckets"
    table.save(path)
    mapped = BucketTable.open(path)
    assert (mapped.num_classes, mapped.num_buckets, mapped.num_repetitions) == (
        K,
        table.num_buckets,
        R,
    )
    np.testing.assert_array_equal(mapped.columns(), full)
    assert [entry.name for entry in tmp_path.iterdir()] == ["buckets"]
    scores = np.random.default_rng(0).normal(size=(R, table.num_buckets)).astype(np.float32)
    result = TopK(mapped).search(scores, 9)
    np.testing.assert_array_equal(result.classes, reference_top_k(scores, full, 9)[0])


def test_the_table_takes_two_bytes_a_block_and_repetition():
    assert assigned()[0].nbytes == 2 * K * R
    assert assigned(70_000)[0].dtype == np.uint32
    large = BucketTable.from_hash(UniversalHash.draw(10**8, 20_000, 2, 0), 10**8)
    assert large.nbytes <= 2 * 2 * (10**8 / large.width + 4)
    assert large.width == 512


def test_buckets_that_are_none_are_refused(tmp_path):
    """Compiled code would read beyond its arrays."""
    path = tmp_path / "buckets"
    hashed()[0].save(path)
    path.write_bytes(path.read_bytes()[:-2] + B.to_bytes(2, "little"))
    with pytest.raises(BundleError, match="damaged"):
        BucketTable.open(path)


@pytest.mark.parametrize("make", [hashed, assigned])
def test_a_damaged_file_is_refused(make, tmp_path):
    path = tmp_path / "buckets"
    make()[0].save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"nonsense", whole[:12], whole[:40], b"X" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match="buckets"):
            BucketTable.open(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "buckets"
    assigned()[0].save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="cut short"):
        BucketTable.open(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BundleError, match="No such file"):
        BucketTable.open(tmp_path / "none")


@pytest.mark.parametrize(
    "assignment",
    [np.zeros(5, np.int64), np.zeros((2, 5)), np.full((2, 5), -1), np.zeros((0, 5), np.int64)],
)
def test_an_assignment_that_is_none_is_refused(assignment):
    with pytest.raises(InvalidInput, match=r"^assignment: "):
        BucketTable.from_assignment(assignment, 10)


def test_classes_out_of_range_have_no_rows():
    with pytest.raises(InvalidInput):
        hashed()[0].rows(np.array([K]))


def test_one_engine_serves_several_threads():
    table, full = hashed()
    engine = TopK(table)
    scores = np.random.default_rng(1).normal(size=(40, R, B)).astype(np.float32)
    allowed = ProductSet.from_mask(np.arange(K) % 2 == 0)
    barrier = threading.Barrier(4)

    def search(part):
        barrier.wait(60)
        return [
            engine.search(one, 10, allowed=allowed if i % 2 else None, repetitions=[0, 2][: i % 3])
            if i % 3
            else engine.search(np.ascontiguousarray(one), 10)
            for i, one in part
        ]

    numbered = [(i, one[: i % 3] if i % 3 else one) for i, one in enumerate(scores)]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(search, [numbered[t::4] for t in range(4)]))
    for t, part in enumerate(parts):
        for (i, one), result in zip(numbered[t::4], part, strict=True):
            rows = np.array([0, 2][: i % 3]) if i % 3 else None
            mask = np.arange(K) % 2 == 0 if i % 3 and i % 2 else None
            expected, sums = reference_top_k(one, full, 10, rows, mask)
            np.testing.assert_array_equal(result.classes, expected)
            np.testing.assert_array_equal(result.scores, sums)


@pytest.mark.parametrize(
    "change",
    [
        {"num_classes": 1e400},
        {"num_buckets": None},
        {"num_classes": 2**31},
        {"num_repetitions": 0},
        {"width": None},
        {"width": 0},
        {"width": 3},
        {"width": 32},
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path, change):
    path = tmp_path / "buckets"
    hashed()[0].save(path)
    data = path.read_bytes()
    length = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16 : 16 + length])
    header |= change
    for encoded in (json.dumps(header).encode(), b"[" * 100_000 + b"]" * 100_000):
        path.write_bytes(data[:8] + len(encoded).to_bytes(8, "little") + encoded)
        with pytest.raises(BundleError, match="damaged header"):
            BucketTable.open(path)


@pytest.mark.parametrize("exponent", [-0.1, 1.1, 1e-9, float("nan"), float("inf"), "1", None])
def test_exponents_of_no_use_are_refused(exponent):
    with pytest.raises(InvalidInput, match=r"merge.exponent: must be"):
        MergeRule.from_manifest({"rule": "power-mean", "exponent": exponent})

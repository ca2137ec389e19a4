"""The benchmark measures what it says, and its baselines compute what they claim."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mach.cli.app import build_app
from mach.errors import InvalidInput
from mach.hashing import UniversalHash
from mach.merge import BucketTable
from mach.merge.baselines import GatherTopK, VotedTopK
from mach.merge.bench import BenchSettings, bench_merge
from mach.merge.reference import reference_top_k
from mach.merge.simulate import flat, trained_like

pytestmark = pytest.mark.timeout(900)

K, B, R = 6000, 100, 6


@pytest.fixture(scope="module")
def products():
    hashing = UniversalHash.draw(K, B, R, 0)
    return BucketTable.from_hash(hashing, K), hashing.table()


def test_the_gather_baseline_is_exact(products):
    table, full = products
    scores = flat(table, 1, np.random.default_rng(0))[0]
    np.testing.assert_array_equal(
        GatherTopK(table).search(scores, 30), reference_top_k(scores, full, 30)[0]
    )


@pytest.mark.parametrize(("depth", "votes"), [(3, 1), (3, 2), (10, 3), (B, 1)])
def test_the_official_decode_scores_the_products_voted_for(products, depth, votes):
    table, full = products
    scores = flat(table, 1, np.random.default_rng(1))[0]
    in_top = np.stack(
        [np.isin(full[r], np.argsort(-scores[r], kind="stable")[:depth]) for r in range(R)]
    )
    expected = reference_top_k(scores, full, 20, allowed=in_top.sum(axis=0) >= votes)[0]
    found = VotedTopK(table, depth, votes).search(scores, 20)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("draw", [trained_like, flat])
def test_simulated_rows_are_log_probabilities(products, draw):
    scores = draw(products[0], 3, np.random.default_rng(0))
    assert scores.shape == (3, R, B)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(axis=-1), 1, rtol=1e-5)


def test_trained_like_rows_agree_on_related_products(products):
    table, full = products
    one = trained_like(table, 1, np.random.default_rng(0), related=(5, 6))[0]
    best = reference_top_k(one, full, 1)[0][0]
    ranks = [(one[r] > one[r, full[r, best]]).sum() for r in range(R)]
    assert np.median(ranks) < 5


def test_report():
    settings = BenchSettings(K, R, B, k=10, queries=5, seconds=1)
    report = bench_merge(settings)
    assert report["products"] == K
    for measured in report["distributions"].values():
        assert measured["mach"]["recall_at_k"] == 1
        assert measured["mach"]["proven"] == 1
        for engine in ("mach", "numpy", "official"):
            assert 0 < measured[engine]["p50_ms"] <= measured[engine]["p99_ms"]
            assert {"recall_at_k", "index_bytes", "build_seconds"} <= set(measured[engine])
        assert measured["numpy"]["recall_at_k"] > 0.9
        assert measured["speedup_vs_numpy"] == pytest.approx(
            measured["numpy"]["p50_ms"] / measured["mach"]["p50_ms"]
        )


def run(*arguments):
    build_app()(["bench", "merge", *map(str, arguments)], standalone_mode=False)


def test_command(tmp_path, capsys):
    path = tmp_path / "report.json"
    size = ("--products", K, "--repetitions", R, "--buckets", B, "-k", 10, "--queries", 3)
    run(*size, "--distribution", "flat", "--seconds", 1, "--json", path)
    assert "NumPy" in capsys.readouterr().out
    assert list(json.loads(path.read_text())["distributions"]) == ["flat"]
    run(*size, "--distribution", "flat", "--no-baselines")
    assert "NumPy" not in capsys.readouterr().out


def test_a_distribution_that_is_none_is_refused():
    with pytest.raises(InvalidInput, match="gaussian"):
        run("--distribution", "gaussian")

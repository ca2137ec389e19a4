"""Evaluation: a plain reference gives the same figures, and mistakes are named."""

import json

import numpy as np
import pytest

from mach.errors import InvalidInput
from mach.evaluation import LocalPipeline, evaluate
from mach.evaluation.plot import plot_repetitions
from mach.inference import RepetitionSession


@pytest.fixture(scope="module")
def interactions(tiny_bundle):
    titles = tiny_bundle.catalog.table["title"].to_pylist()
    ids = tiny_bundle.catalog.product_ids(range(len(titles)))
    pairs = [(title, [product_id]) for title, product_id in zip(titles, ids, strict=True)]
    return [*pairs, ("zzz unknown words", ["P00001"]), (titles[3], ["P00003", "gone", "P00003"])]


def plain_ranking(bundle, text, repetitions):
    """Every product scored one by one, in float64, ties by class."""
    batch = bundle.featurizer.batch([text])
    if not len(batch.indices):
        return []
    rows = [RepetitionSession(bundle, r).run(batch)[0].astype(np.float64) for r in repetitions]
    table = bundle.hash.table()
    scores = [
        sum(row[table[r, c]] for r, row in zip(repetitions, rows, strict=True))
        for c in range(bundle.manifest.num_classes)
    ]
    return sorted(range(len(scores)), key=lambda c: (-scores[c], c))


def test_pipeline_is_a_plain_scoring_of_every_product(tiny_bundle, interactions):
    texts = [query for query, _ in interactions[:20]] + ["red drill", "unheard of"]
    for repetitions in ([0, 1, 2, 3], [1, 3]):
        found = LocalPipeline(tiny_bundle, repetitions=repetitions).search(texts, 15)
        for text, classes in zip(texts, found, strict=True):
            assert classes.tolist() == plain_ranking(tiny_bundle, text, repetitions)[:15]


def test_figures_agree_with_a_plain_reference(tiny_bundle, interactions):
    (result,) = evaluate(tiny_bundle, interactions)
    hits = recall = 0.0
    for query, products in interactions:
        true = {tiny_bundle.catalog.class_of(p) for p in set(products)} - {None}
        ranked = plain_ranking(tiny_bundle, query, range(4))
        hits += ranked[:1] != [] and ranked[0] in true
        recall += len(true & set(ranked[:20])) / len(set(products))
    assert result.queries == len(interactions)
    assert result.unseen == 1
    assert result.metrics["P@1"] == pytest.approx(hits / len(interactions))
    assert result.metrics["R@20"] == pytest.approx(recall / len(interactions))
    assert 0.5 < result.metrics["P@1"] < 1
    assert 0 < result.latency_p50_ms <= result.latency_p99_ms


def test_repetitions_are_a_dial(tiny_bundle, interactions, tmp_path):
    results = evaluate(tiny_bundle, interactions, repetitions=[4, 1, 2])
    assert [result.repetitions for result in results] == [1, 2, 4]
    assert results[0].metrics["P@1"] < results[-1].metrics["P@1"]
    sizes = [result.model_bytes for result in results]
    assert sizes == sorted(sizes)
    assert sizes[0] == tiny_bundle.model_size(0)
    (alone,) = evaluate(tiny_bundle, interactions)
    assert alone.metrics == results[-1].metrics
    assert {"P@1", "nDCG@10", "queries", "latency_p99_ms"} <= alone.to_json().keys()
    json.dumps(alone.to_json())
    plot_repetitions(results, tmp_path / "dial.png")
    assert (tmp_path / "dial.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("repetitions", [[0], [5], [-1, 2]])
def test_repetitions_that_the_bundle_has_not(tiny_bundle, interactions, repetitions):
    with pytest.raises(InvalidInput, match="repetitions"):
        evaluate(tiny_bundle, interactions, repetitions=repetitions)


def test_no_query_at_all(tiny_bundle):
    with pytest.raises(InvalidInput, match="no query"):
        evaluate(tiny_bundle, [])

"""Scoring a bundle on held-out interactions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.bundle import Bundle
from mach.errors import InvalidInput
from mach.evaluation.metrics import RankingMetrics
from mach.evaluation.pipeline import LocalPipeline

__all__ = ["Evaluation", "evaluate"]

_CHUNK = 128
_TIMED_QUERIES = 500


@dataclass(frozen=True)
class Evaluation:
    """Figures for one number of repetitions.

    Attributes:
        repetitions: how many were merged.
        metrics: ``P@1`` … ``nDCG@10``.
        queries: how many were scored.
        unseen: true products, over all queries, that the catalog does not have.
        latency_p50_ms: text to products, one query at a time, one thread, in process.
        latency_p99_ms: the same.
        model_bytes: the ONNX files used.
    """

    repetitions: int
    metrics: dict[str, float]
    queries: int
    unseen: int
    latency_p50_ms: float
    latency_p99_ms: float
    model_bytes: int

    def to_json(self) -> dict[str, Any]:
        """One flat object."""
        return {
            "repetitions": self.repetitions,
            **self.metrics,
            "queries": self.queries,
            "unseen_products": self.unseen,
            "latency_p50_ms": self.latency_p50_ms,
            "latency_p99_ms": self.latency_p99_ms,
            "model_bytes": self.model_bytes,
        }


def _chunks(
    items: Iterable[tuple[str, Sequence[str]]], size: int
) -> Iterator[list[tuple[str, Sequence[str]]]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _latencies_ms(
    pipeline: LocalPipeline, texts: Sequence[str], k: int, counts: Sequence[int]
) -> dict[int, NDArray[np.float64]]:
    sizes: dict[int, NDArray[np.float64]] = {}
    for count in counts:
        alone = pipeline.first(count)
        for text in texts[:20]:
            alone.search([text], k)
        taken = []
        for text in texts:
            start = time.perf_counter()
            alone.search([text], k)
            taken.append(time.perf_counter() - start)
        sizes[count] = np.array(taken) * 1e3
    return sizes


def evaluate(
    bundle: Bundle,
    interactions: Iterable[tuple[str, Sequence[str]]],
    *,
    repetitions: Sequence[int] | None = None,
    threads: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> list[Evaluation]:
    """Score ``bundle`` on ``(query, true product ids)`` pairs.

    Args:
        bundle: the bundle; its first r repetitions are used for each r in ``repetitions``.
        interactions: queries with their products; read once, a chunk at a time.
        repetitions: numbers of repetitions; all of them where not given.
        threads: of ONNX Runtime, for the scoring; latency is always of one thread.
        on_progress: called with the number of queries scored so far.

    Raises:
        InvalidInput: if a number of repetitions is not in the bundle or no query was given.
    """
    available = bundle.manifest.num_repetitions
    counts = sorted(set(repetitions or [available]))
    if counts[0] < 1 or counts[-1] > available:
        raise InvalidInput("repetitions", f"must be from 1 to {available}, the bundle's number")
    pipeline = LocalPipeline(bundle, repetitions=range(counts[-1]), threads=threads)
    scorers = {count: RankingMetrics() for count in counts}
    depth = scorers[counts[0]].depth
    sample: list[str] = []
    unseen = done = 0
    for chunk in _chunks(interactions, _CHUNK):
        texts = [query for query, _ in chunk]
        sample += texts[: max(0, _TIMED_QUERIES - len(sample))]
        batch = bundle.featurizer.batch(texts)
        known = np.diff(batch.splits) > 0
        rows = pipeline.log_probabilities(batch)
        truths: list[tuple[NDArray[np.int64], int]] = []
        for _, product_ids in chunk:
            distinct = set(product_ids)
            classes = [c for c in map(bundle.catalog.class_of, distinct) if c is not None]
            unseen += len(distinct) - len(classes)
            truths.append((np.array(classes, np.int64), len(distinct)))
        for count, scorer in scorers.items():
            for found, has_features, (true, num_true) in zip(
                pipeline.merge(rows, depth, count), known, truths, strict=True
            ):
                scorer.add(found.classes if has_features else found.classes[:0], true, num_true)
        done += len(chunk)
        if on_progress:
            on_progress(done)
    if not done:
        raise InvalidInput("interactions", "there is no query to score")
    if threads != 1:
        pipeline = LocalPipeline(bundle, repetitions=range(counts[-1]))
    taken = _latencies_ms(pipeline, sample, depth, counts)
    return [
        Evaluation(
            repetitions=count,
            metrics=scorers[count].results(),
            queries=scorers[count].queries,
            unseen=unseen,
            latency_p50_ms=float(np.percentile(taken[count], 50)),
            latency_p99_ms=float(np.percentile(taken[count], 99)),
            model_bytes=sum(bundle.model_size(r) for r in range(count)),
        )
        for count in counts
    ]

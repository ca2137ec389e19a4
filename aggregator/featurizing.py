"""Text to features for all queries of a batch at once, which costs little more than one."""

from __future__ import annotations

import numpy as np

from aggregator.coverage import Coverage
from aggregator.fanout.batch import Job, JobAnswer
from aggregator.merging import empty_result
from aggregator.policy import Limits
from aggregator.results import Timings
from mach.errors import InvalidInput
from mach.features import Featurizer, SparseBatch

__all__ = ["featurize", "featurize_jobs"]


def featurize(featurizer: Featurizer, queries: list[str | SparseBatch]) -> SparseBatch:
    """One row a query: features of texts, and rows of features as they are."""
    texts = [query for query in queries if isinstance(query, str)]
    rows = featurizer.batch(texts)
    if len(texts) == len(queries):
        return rows
    parts, next_text = [], 0
    for query in queries:
        if isinstance(query, str):
            parts.append(rows.rows(next_text, next_text + 1))
            next_text += 1
        else:
            parts.append(query)
    return SparseBatch.concatenate(parts)


def featurize_jobs(jobs: list[Job], limits: Limits) -> tuple[list[Job], SparseBatch]:
    """Features of the queries of ``jobs``, which share a bundle.

    Jobs that need no shard are answered here: with no products where nothing is known of any
    of their queries, with an error where a text has more features than a shard accepts.

    Returns:
        The other jobs, and a row for each of their queries.
    """
    served = jobs[0].served
    rows = featurize(served.featurizer, [query for job in jobs for query in job.queries])
    lengths = np.diff(rows.splits)
    if lengths.min(initial=1) > 0 and lengths.max(initial=0) <= limits.max_nonzeros:
        return jobs, rows
    kept: list[Job] = []
    parts: list[SparseBatch] = []
    start = 0
    for job in jobs:
        stop = start + len(job)
        own = lengths[start:stop]
        if own.max() > limits.max_nonzeros:
            job.fail(
                InvalidInput(
                    job.field(int(own.argmax())),
                    f"has {own.max()} features, at most {limits.max_nonzeros}",
                )
            )
        elif not own.any():
            total = served.manifest.num_repetitions
            nothing = empty_result(Coverage(total, total, {}), job.options)
            job.resolve(JobAnswer([nothing] * len(job), Timings()))
        else:
            kept.append(job)
            parts.append(rows.rows(start, stop))
        start = stop
    return kept, SparseBatch.concatenate(parts) if parts else rows.rows(0, 0)

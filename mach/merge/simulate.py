"""Bucket log-probabilities as a trained model gives them, without a model.

A query is related to some products, whose relevance falls like a power of their rank; a
classifier gives a bucket the relevance of the products in it, plus its share of the rest, and
errs by a factor that is log-normal and independent between repetitions. The form and its
constants are fitted to a model trained on 90,452 titles (R = 16, B = 2,000, K = 38,267): with 30 %
of the mass on related products the sorted log-probabilities agree within 0.3 nats over ranks 3 to
1,500, and so does, within 0.5, how far a product's buckets rise above the mean by the
product's rank. How many products are related to a query of a larger catalog is assumed, not
measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mach.merge.table import BucketTable

__all__ = ["flat", "trained_like"]

_DECAY = 1.05  # relevance of the j-th related product is j ** -_DECAY
_BUCKET_NOISE = 1.1  # standard deviation of a bucket's error, in nats
_PRODUCT_NOISE = 0.85  # of a related product's


def trained_like(
    table: BucketTable,
    num_queries: int,
    rng: np.random.Generator,
    *,
    related: tuple[int, int] = (30, 3000),
    mass: tuple[float, float] = (0.2, 0.8),
) -> NDArray[np.float32]:
    """Log-probabilities of peaked distributions with a long tail, float32, shape (n, R, B).

    Args:
        table: the products.
        num_queries: n.
        rng: the source of randomness.
        related: least and greatest number of products related to a query, drawn log-uniformly.
        mass: least and greatest share of the probability on them, drawn uniformly.
    """
    repetitions, buckets = table.num_repetitions, table.num_buckets
    out = np.empty((num_queries, repetitions, buckets), np.float32)
    for query in range(num_queries):
        count = round(float(np.exp(rng.uniform(*np.log(related)))))
        products = np.unique(rng.integers(0, table.num_classes, count))
        rng.shuffle(products)
        relevance = np.arange(1, len(products) + 1) ** -_DECAY
        on_related = rng.uniform(*mass)
        relevance *= on_related / relevance.sum()
        probabilities = rng.lognormal(
            -(_BUCKET_NOISE**2) / 2, _BUCKET_NOISE, (repetitions, buckets)
        )
        probabilities *= (1 - on_related) / buckets
        rows = table.rows(products)
        noise = rng.lognormal(-(_PRODUCT_NOISE**2) / 2, _PRODUCT_NOISE, rows.shape)
        for repetition in range(repetitions):
            np.add.at(
                probabilities[repetition], rows[:, repetition], relevance * noise[:, repetition]
            )
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        out[query] = np.log(probabilities)
    return out


def flat(table: BucketTable, num_queries: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Log-probabilities of a model that knows nothing: all but equal, and independent.

    No bucket and no product stands out, which is the worst case for a search that tries to look
    at few of them. Float32, shape (n, R, B).
    """
    shape = (num_queries, table.num_repetitions, table.num_buckets)
    logits = rng.normal(scale=0.1, size=shape)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits.astype(np.float32)

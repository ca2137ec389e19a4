"""Training queries of any number, generated as they are needed, the same from the same seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mach.features import SparseBatch
from trainer.examples import Examples

__all__ = ["generated_queries"]

#: Features of a query: from so many to so many, 16 in the mean.
SHORTEST, LONGEST = 8, 24
#: Share of the clicks that fall on any product alike; the rest follows Zipf's law.
_UNIFORM = 0.25


def generated_queries(
    num_features: int, num_products: int, batch_size: int, seed: int = 0
) -> Iterator[Examples]:
    """Batches without end; batch b depends on the seed and b alone.

    Features and products are long-tailed, Zipf's law with exponent 1. A query has one product
    and a vector of length 1.
    """
    number = 0
    while True:
        rng = np.random.default_rng([seed, number])
        lengths = rng.integers(SHORTEST, LONGEST + 1, batch_size)
        splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        products = _zipf(rng, num_products, batch_size)
        anywhere = rng.random(batch_size) < _UNIFORM
        products[anywhere] = rng.integers(num_products, size=int(anywhere.sum()))
        yield Examples(
            features=SparseBatch(
                _zipf(rng, num_features, int(splits[-1])).astype(np.int32),
                np.repeat(1 / np.sqrt(lengths), lengths).astype(np.float32),
                splits,
            ),
            classes=products.astype(np.int32),
            class_weights=np.ones(batch_size, np.float32),
            class_splits=np.arange(batch_size + 1),
            weights=np.ones(batch_size, np.float32),
        )
        number += 1


def _zipf(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    drawn = np.exp(rng.random(size, np.float32) * np.float32(np.log(count + 1))) - 1
    return np.minimum(drawn.astype(np.int64), count - 1)

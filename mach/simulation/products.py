"""Products of the simulated store, a chunk at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mach.simulation.vocabulary import COLORS, FEATURES, LINES, MATERIALS, TYPES, brand_names

__all__ = ["CHUNK", "ProductWords", "Products"]

#: Products are drawn in chunks of so many, each from its own seed.
CHUNK = 1 << 16
_MAX_BRANDS = 3000


@dataclass(frozen=True, eq=False)
class ProductWords:
    """Which words n products are made of: indices into the vocabulary, int64, shape (n,)."""

    brand: NDArray[np.int64]
    type: NDArray[np.int64]
    line: NDArray[np.int64]
    number: NDArray[np.int64]
    color: NDArray[np.int64]
    material: NDArray[np.int64]
    feature: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> ProductWords:
        """The given products."""
        return ProductWords(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class Products:
    """All products of a store; any chunk can be drawn at any time.

    Args:
        count: how many.
        seed: the same gives the same products.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._seed = seed
        number = int(min(_MAX_BRANDS, max(12, count**0.5 / 2)))
        self.brands = brand_names(number, np.random.default_rng([seed, 1]))
        # A product's type sells more or less; so does a brand make more or fewer products.
        rng = np.random.default_rng([seed, 2])
        self._type_shares = rng.dirichlet(np.full(len(TYPES), 3.0))
        self._brand_shares = rng.dirichlet(np.full(number, 1.0))

    def words(self, chunk: int) -> ProductWords:
        """Words of products ``chunk * CHUNK`` and on."""
        n = min(CHUNK, self.count - chunk * CHUNK)
        rng = np.random.default_rng([self._seed, 3, chunk])
        return ProductWords(
            brand=rng.choice(len(self.brands), n, p=self._brand_shares),
            type=rng.choice(len(TYPES), n, p=self._type_shares),
            line=rng.integers(len(LINES), size=n),
            number=10 * rng.integers(10, 1000, size=n),
            color=rng.integers(len(COLORS), size=n),
            material=rng.integers(len(MATERIALS), size=n),
            feature=rng.integers(len(FEATURES), size=n),
        )

    @property
    def num_chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.count // CHUNK)

    @staticmethod
    def ids(numbers: NDArray[np.int64]) -> pa.Array:
        """Ids of products, in text order as in number order."""
        return pc.binary_join_element_wise(
            "p", pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0"), ""
        )

    def table(self, chunk: int) -> pa.Table:
        """Products of one chunk as a catalog."""
        words = self.words(chunk)
        rng = np.random.default_rng([self._seed, 4, chunk])
        n = len(words.brand)
        kinds = pa.array([t.name for t in TYPES]).take(pa.array(words.type))
        categories = pa.array([t.category for t in TYPES]).take(pa.array(words.type))
        brands = pa.array(self.brands).take(pa.array(words.brand))
        colors = pa.array(COLORS).take(pa.array(words.color))
        titles = pc.binary_join_element_wise(
            brands,
            pa.array(LINES).take(pa.array(words.line)),
            pa.array(words.number).cast(pa.string()),
            pa.array(FEATURES).take(pa.array(words.feature)),
            kinds,
            pa.array(MATERIALS).take(pa.array(words.material)),
            colors,
            " ",
        )
        medians = np.array([t.price for t in TYPES])[words.type]
        return pa.table(
            {
                "product_id": self.ids(chunk * CHUNK + np.arange(n)),
                "title": titles,
                "brand": brands,
                "category": categories,
                "color": colors,
                "price": np.round(medians * np.exp(rng.normal(0, 0.4, n)), 2),
                "in_stock": rng.random(n) < 0.92,
            }
        )

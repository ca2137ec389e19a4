"""The simulated log: which product was clicked, and what had been typed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mach.simulation.products import CHUNK, Products, ProductWords
from mach.simulation.vocabulary import COLORS, FEATURES, LINES, MATERIALS, TYPES

__all__ = ["ROWS", "Clicks"]

#: Rows are drawn in chunks of so many, each from its own seed.
ROWS = 1 << 17
_UNIFORM_SHARE = 0.25
_SYNONYM_SHARE = 0.35
_TYPO_SHARE = 0.1

#: What people type: parts of a product in order, and how often.
_TEMPLATES: tuple[tuple[tuple[str, ...], float], ...] = (
    (("brand", "type"), 0.12),
    (("brand", "line", "type"), 0.16),
    (("brand", "line", "number"), 0.18),
    (("color", "brand", "type"), 0.12),
    (("brand", "feature", "type"), 0.12),
    (("line", "number", "type"), 0.10),
    (("feature", "material", "type"), 0.05),
    (("color", "type"), 0.03),
    (("brand", "line", "number", "type", "color"), 0.12),
)


class Clicks:
    """A log over ``products``, drawn a chunk at a time.

    A quarter of the clicks falls on any product alike; the rest follows Zipf's law with
    exponent 1, so that the most popular product has about 7 % of a small store's clicks.

    Args:
        products: what can be clicked.
        seed: the same gives the same log.
    """

    def __init__(self, products: Products, seed: int) -> None:
        self._products = products
        self._seed = seed
        self._by_popularity = np.random.default_rng([seed, 5]).permutation(products.count)
        self._words = [products.words(chunk) for chunk in range(products.num_chunks)]

    def table(self, chunk: int, rows: int = ROWS, *, stream: int = 0) -> pa.Table:
        """``rows`` rows of ``query`` and ``product_id``; streams have nothing in common."""
        rng = np.random.default_rng([self._seed, 6, stream, chunk])
        count = self._products.count
        ranks = np.exp(rng.random(rows) * np.log(count + 1)).astype(np.int64) - 1
        clicked = self._by_popularity[np.minimum(ranks, count - 1)]
        uniform = rng.random(rows) < _UNIFORM_SHARE
        clicked = np.where(uniform, rng.integers(count, size=rows), clicked)
        queries = self._queries(clicked, rng)
        return pa.table({"query": queries, "product_id": self._products.ids(clicked)})

    def _of(self, clicked: NDArray[np.int64]) -> ProductWords:
        columns = {}
        for name in ProductWords.__dataclass_fields__:
            values = np.empty(len(clicked), np.int64)
            for chunk, words in enumerate(self._words):
                here = clicked // CHUNK == chunk
                values[here] = getattr(words, name)[clicked[here] % CHUNK]
            columns[name] = values
        return ProductWords(**columns)

    def _queries(self, clicked: NDArray[np.int64], rng: np.random.Generator) -> pa.Array:
        words = self._of(clicked)
        parts = {
            "brand": _lower(self._products.brands).take(pa.array(words.brand)),
            "type": _type_words(words.type, rng),
            "line": _lower(LINES).take(pa.array(words.line)),
            "number": pa.array(words.number).cast(pa.string()),
            "color": _lower(COLORS).take(pa.array(words.color)),
            "material": _lower(MATERIALS).take(pa.array(words.material)),
            "feature": _lower(FEATURES).take(pa.array(words.feature)),
        }
        shares = np.array([share for _, share in _TEMPLATES])
        template = rng.choice(len(_TEMPLATES), len(clicked), p=shares / shares.sum())
        columns = [
            pc.binary_join_element_wise(*(parts[name] for name in names), " ")
            for names, _ in _TEMPLATES
        ]
        queries = pc.choose(pa.array(template), *columns)
        wrong = np.flatnonzero(rng.random(len(clicked)) < _TYPO_SHARE)
        texts = queries.take(pa.array(wrong)).to_pylist()
        draws = rng.random((len(wrong), 2))
        typed = [_misspelt(text, *draw) for text, draw in zip(texts, draws.tolist(), strict=True)]
        mask = np.zeros(len(clicked), bool)
        mask[wrong] = True
        return pc.replace_with_mask(queries, pa.array(mask), pa.array(typed, pa.string()))


def _lower(words: tuple[str, ...] | list[str]) -> pa.Array:
    return pa.array([word.lower() for word in words])


def _type_words(types: NDArray[np.int64], rng: np.random.Generator) -> pa.Array:
    """The type's name or one of its synonyms."""
    names: list[str] = []
    first, counts = [], []
    for kind in TYPES:
        first.append(len(names))
        counts.append(len(kind.synonyms))
        names += [kind.name.lower(), *kind.synonyms]
    synonym = rng.random(len(types)) < _SYNONYM_SHARE
    which = 1 + (rng.random(len(types)) * np.array(counts)[types]).astype(np.int64)
    return pa.array(names).take(pa.array(np.array(first)[types] + np.where(synonym, which, 0)))


def _misspelt(text: str, where: float, how: float) -> str:
    """One slip of the finger: a letter left out, doubled, or swapped with the next."""
    at = 1 + int(where * (len(text) - 2))  # first letters are rarely wrong
    if how < 0.4:
        return text[:at] + text[at + 1 :]
    if how < 0.6:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :]

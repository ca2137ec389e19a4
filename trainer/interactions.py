"""Interactions, who searched for what and took which product, as clean batches.

What is wrong is either an error that names file and row (a row that cannot be parsed, text
that is not UTF-8, a weight that is negative, no number or out of range), or skipped and counted
in a :class:`SkipReport` (no query, no product, weight 0). ``docs/training.md`` has the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mach.errors import DataError
from trainer.settings import MAX_WEIGHT, MIN_WEIGHT
from trainer.tables import TableBatch, column_names, file_format, stream_columns

__all__ = [
    "MAX_QUERY_CHARACTERS",
    "InteractionBatch",
    "SkipReport",
    "check_columns",
    "read_interactions",
    "read_queries",
]

#: Servers refuse longer queries, so training cuts there.
MAX_QUERY_CHARACTERS = 4096


@dataclass
class SkipReport:
    """What reading left out: for each reason, how often and where first."""

    rows: int = 0
    """Rows read."""
    pairs: int = 0
    """(query, product) pairs in them, skipped rows excluded."""
    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, count: int, where: str) -> None:
        """Count ``count`` more of a reason, the first of which is at ``where``."""
        if count:
            self.skipped[reason] = self.skipped.get(reason, 0) + count
            self.first.setdefault(reason, where)

    def check_rows(self, path: Path, max_skipped: float) -> None:
        """Refuse rows of which too many were skipped.

        Args:
            path: what the message names.
            max_skipped: the share of the rows that may be skipped.

        Raises:
            DataError: if more were.
        """
        skipped = {name: self.skipped.get(name, 0) for name in ROW_REASONS}
        worst = max(skipped, key=lambda name: skipped[name])
        if sum(skipped.values()) > max_skipped * self.rows:
            raise DataError(
                path,
                f"{sum(skipped.values()):,} of {self.rows:,} rows cannot be used, more than "
                f"max_skipped allows: {skipped[worst]:,} × {worst} (first: {self.first[worst]})",
            )

    def lines(self) -> list[str]:
        """One line a reason, for people."""
        return [
            f"{count:,} × {reason} (first: {self.first[reason]})"
            for reason, count in self.skipped.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {"rows": self.rows, "pairs": self.pairs, "skipped": dict(self.skipped)}


#: Reasons, in the words that users read. The first three leave out a row, the fourth a pair.
NO_QUERY = "row without a query skipped"
NO_PRODUCT = "row without a product skipped"
NO_WEIGHT = "row of weight 0 skipped"
UNKNOWN_PRODUCT = "pair skipped, its product is not in the catalog"
LONG_QUERY = f"query cut to {MAX_QUERY_CHARACTERS} characters"
BROKEN_LINE = "query or product id with a line break (is a quote never closed?)"
ROW_REASONS = (NO_QUERY, NO_PRODUCT, NO_WEIGHT)


@dataclass(frozen=True, eq=False)
class InteractionBatch:
    """Some rows: n queries and m pairs.

    Attributes:
        queries: text, Arrow string array of length n, none empty.
        weights: float64, shape (n,), positive.
        pair_rows: int64, shape (m,), increasing: the query of each pair.
        products: product ids, Arrow string array of length m, none empty.
        where: file and first row, for messages.
    """

    queries: pa.Array
    weights: NDArray[np.float64]
    pair_rows: NDArray[np.int64]
    products: pa.Array
    where: str


def check_columns(path: Path) -> list[str]:
    """The columns to read from a file of interactions.

    Raises:
        DataError: if ``query`` or both of ``product_id`` and ``product_ids`` are missing.
    """
    names = column_names(path)
    if "query" not in names:
        raise DataError(path, f"has no column query, only {', '.join(names)}")
    given = [name for name in ("product_id", "product_ids") if name in names]
    if len(given) != 1:
        has = "both columns, of which one must go" if given else f"only {', '.join(names)}"
        raise DataError(path, f"needs a column product_id or product_ids, and has {has}")
    # Of JSON Lines the names are those of the first row, and later rows may have a weight too.
    weighted = "weight" in names or file_format(path)[0] == "jsonl"
    return ["query", *given, *(["weight"] if weighted else [])]


def read_interactions(paths: Iterable[Path], report: SkipReport) -> Iterator[InteractionBatch]:
    """Read files of interactions, a bounded batch at a time.

    Args:
        paths: the files, read in order.
        report: counts what is skipped.

    Raises:
        DataError: see the module's head; also if a file has no rows.
    """
    for path in paths:
        columns = check_columns(path)
        before = report.rows
        for batch in stream_columns(path, columns):
            report.rows += len(batch.columns["query"])
            cleaned = _clean(path, batch, report)
            report.pairs += len(cleaned.pair_rows)
            yield cleaned
        if report.rows == before:
            raise DataError(path, "has no rows")


def read_queries(
    paths: Sequence[Path], report: SkipReport | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Rows as (query, distinct product ids), for evaluation; what cannot be used is left out.

    Args:
        paths: the files, read in order.
        report: counts what is left out, a batch of rows ahead of what is yielded.

    Raises:
        DataError: as :func:`read_interactions`.
    """
    for batch in read_interactions(paths, report or SkipReport()):
        products = batch.products.to_pylist()
        splits = np.searchsorted(batch.pair_rows, np.arange(len(batch.queries) + 1))
        for row, query in enumerate(batch.queries.to_pylist()):
            yield query, list(dict.fromkeys(products[splits[row] : splits[row + 1]]))


def _clean(path: Path, batch: TableBatch, report: SkipReport) -> InteractionBatch:
    def count(reason: str, which: NDArray[np.bool_]) -> None:
        if which.any():
            row = batch.first_row + int(np.argmax(which))
            report.add(reason, int(which.sum()), f"{path}, row {row}")

    queries = batch.columns["query"]
    num_rows = len(queries)
    weights = _weights(path, batch)
    pair_rows, products = _pairs(batch)
    has_query = _filled(queries)
    has_product = np.bincount(pair_rows, minlength=num_rows) > 0
    has_weight = weights > 0
    count(NO_QUERY, ~has_query)
    count(NO_PRODUCT, has_query & ~has_product)
    count(NO_WEIGHT, has_query & has_product & ~has_weight)
    keep = has_query & has_product & has_weight
    if not keep.all():
        kept_pairs = keep[pair_rows]
        products = products.filter(pa.array(kept_pairs))
        pair_rows = (np.cumsum(keep) - 1)[pair_rows[kept_pairs]]
        queries, weights = queries.filter(pa.array(keep)), weights[keep]
    broken = np.zeros(num_rows, bool)
    broken[keep] = _has_line_break(queries)
    broken[np.flatnonzero(keep)[pair_rows[_has_line_break(products)]]] = True
    count(BROKEN_LINE, broken)
    long = np.zeros(num_rows, bool)
    long[keep] = pc.utf8_length(queries).to_numpy(zero_copy_only=False) > MAX_QUERY_CHARACTERS
    if long.any():
        count(LONG_QUERY, long)
        queries = pc.utf8_slice_codeunits(queries, 0, MAX_QUERY_CHARACTERS)
    return InteractionBatch(
        queries, weights, pair_rows, products, f"{path}, from row {batch.first_row}"
    )


def _has_line_break(texts: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.match_substring(texts, "\n").to_numpy(zero_copy_only=False)
    return found


def _filled(texts: pa.Array) -> NDArray[np.bool_]:
    """Which of them are neither null nor blank."""
    filled = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(texts), ""), False)
    result: NDArray[np.bool_] = filled.to_numpy(zero_copy_only=False)
    return result


def _weights(path: Path, batch: TableBatch) -> NDArray[np.float64]:
    """Weight of each row; a missing one is 1."""
    if "weight" not in batch.columns:
        return np.ones(len(batch.columns["query"]))
    column = pc.fill_null(batch.columns["weight"], 1.0)
    weights: NDArray[np.float64] = column.to_numpy(zero_copy_only=False)
    wrong = ~((weights == 0) | ((weights >= MIN_WEIGHT) & (weights <= MAX_WEIGHT)))
    if wrong.any():
        index = int(np.argmax(wrong))
        raise DataError(
            path,
            f"weight is {weights[index]}, it must be 0 or from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}",
            batch.first_row + index,
        )
    return weights


def _pairs(batch: TableBatch) -> tuple[NDArray[np.int64], pa.Array]:
    """Row and id of each pair whose id is neither null nor blank."""
    if "product_id" in batch.columns:
        products = batch.columns["product_id"]
        rows = np.arange(len(products))
    else:
        lists = batch.columns["product_ids"]
        products = pc.list_flatten(lists)
        rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    filled = _filled(products)
    if not filled.all():
        rows, products = rows[filled], products.filter(pa.array(filled))
    return rows, products

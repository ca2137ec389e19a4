"""Reading: the log, and titles if asked for, into files of pairs; which queries are held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mach.bundle import Catalog
from mach.bundle.catalog import ID_COLUMN
from mach.errors import DataError
from trainer.catalog import TITLE_COLUMN, ClassIndex
from trainer.interactions import UNKNOWN_PRODUCT, SkipReport, read_interactions
from trainer.progress import Reporter
from trainer.settings import TrainSettings
from trainer.spill import HELD_OUT, Groups, Spill
from trainer.tables import file_format

__all__ = ["gather", "held_out_queries"]

#: Bytes of text that a part shall have at most, roughly, before its queries are grouped.
PART_BYTES = 96 << 20
_MAX_PARTS = 256
#: A rough row, to bound parts and the held-out part before the log was read.
_ROW_BYTES = 50
_TITLES = 8192


def gather(
    interactions: Sequence[Path],
    catalog: Path | None,
    products: Catalog,
    directory: Path,
    settings: TrainSettings,
    reporter: Reporter,
) -> tuple[Spill, SkipReport]:
    """Read everything once.

    Args:
        interactions: files of the log.
        catalog: where ``products`` come from, for messages.
        products: all products.
        directory: an empty directory, for the pairs.
        settings: of the run.
        reporter: told of progress.

    Raises:
        DataError: if a file cannot be used, or too much of the log.
    """
    report = SkipReport()
    spill = _open_spill(directory, interactions, settings)
    try:
        ids = _one_chunk(products.table[ID_COLUMN].combine_chunks())
        _spill_log(interactions, ClassIndex(ids), spill, report, reporter)
        if settings.catalog_titles and TITLE_COLUMN in products.attributes:
            _spill_titles(products, spill, settings.title_weight)
    finally:
        spill.close()
    _check_skipped(report, interactions, catalog, settings)
    return spill, report


def _one_chunk(ids: Any) -> Any:
    return pa.concat_arrays(ids.chunks) if isinstance(ids, pa.ChunkedArray) else ids


def _sizes(paths: Sequence[Path]) -> tuple[int, int]:
    """Bytes of uncompressed text and number of rows, roughly."""
    size = rows = 0
    for path in paths:
        kind, compression = file_format(path)
        if kind == "parquet":
            metadata = pq.read_metadata(path)
            rows += metadata.num_rows
            groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
            encoded = sum(group.total_byte_size for group in groups)
            size += max(encoded, metadata.num_rows * _ROW_BYTES)  # repeats are encoded short
        else:
            expanded = path.stat().st_size * (6 if compression else 1)
            size += expanded
            rows += expanded // _ROW_BYTES
    return size, rows


def _open_spill(directory: Path, paths: Sequence[Path], settings: TrainSettings) -> Spill:
    size, rows = _sizes(paths)
    # Ten times the number wanted, since queries repeat; held_out_queries cuts to the number.
    share = min(settings.validation_fraction, 10 * settings.validation_max / max(1, rows))
    return Spill(
        directory,
        num_parts=min(_MAX_PARTS, 1 + size // PART_BYTES),
        held_out=share,
        seed=settings.seed,
    )


def _spill_log(
    paths: Sequence[Path],
    index: ClassIndex,
    spill: Spill,
    report: SkipReport,
    reporter: Reporter,
) -> None:
    with reporter.counting("reading", "rows") as advance:
        before = 0
        for batch in read_interactions(paths, report):
            classes = index.lookup(batch.products)
            unknown = classes < 0
            if unknown.any():
                where = batch.products[int(np.argmax(unknown))].as_py()
                report.add(UNKNOWN_PRODUCT, int(unknown.sum()), f"{where!r}, {batch.where}")
            rows = batch.pair_rows[~unknown]
            # A row's weight is shared by its products, so that a list counts as one event.
            weights = batch.weights / np.maximum(1, np.bincount(rows, minlength=len(batch.weights)))
            spill.add(batch.queries, rows, classes[~unknown], weights[rows])
            advance(report.rows - before)
            before = report.rows


def _spill_titles(products: Catalog, spill: Spill, weight: float) -> None:
    for start in range(0, len(products), _TITLES):
        column = products.table[TITLE_COLUMN].slice(start, _TITLES)
        titles = _one_chunk(column.cast(pa.string()).combine_chunks())
        filled = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(titles), ""), False)
        classes = start + np.flatnonzero(filled.to_numpy(zero_copy_only=False))
        spill.add(
            titles.filter(filled),
            np.arange(len(classes)),
            classes.astype(np.int32),
            np.full(len(classes), weight),
            train_only=True,
        )


def _check_skipped(
    report: SkipReport, paths: Sequence[Path], catalog: Path | None, settings: TrainSettings
) -> None:
    report.check_rows(paths[0], settings.max_skipped)
    if not report.pairs:
        raise DataError(paths[0], "no row has a query and a product")
    unknown = report.skipped.get(UNKNOWN_PRODUCT, 0)
    if unknown > settings.max_unknown * report.pairs or unknown == report.pairs:
        raise DataError(
            paths[0],
            f"{unknown:,} of {report.pairs:,} products clicked are not in {catalog}, more than "
            f"max_unknown allows (first: {report.first[UNKNOWN_PRODUCT]})",
        )


def held_out_queries(spill: Spill, most: int) -> tuple[Groups, Groups]:
    """At most ``most`` held-out queries, those with the smallest hashes, and the others."""
    groups = spill.part(HELD_OUT)
    if not len(groups):
        return groups, groups
    order = np.argsort(spill.hashes(groups.queries), kind="stable")
    return groups.take(np.sort(order[:most])), groups.take(np.sort(order[most:]))

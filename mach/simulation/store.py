"""Writing a simulated store to files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mach.errors import InvalidInput
from mach.files import atomic_path
from mach.simulation.clicks import ROWS, Clicks
from mach.simulation.products import Products

__all__ = ["SimulatedStore", "simulate_store"]

_MAX_PRODUCTS = 50_000_000


@dataclass(frozen=True)
class SimulatedStore:
    """The files of a store, all Parquet."""

    products: Path
    """``product_id title brand category color price in_stock``: a catalog."""
    clicks: Path
    """``query product_id``: interactions to train on."""
    held_out: Path
    """The same, drawn from the same distribution, to evaluate on."""


def simulate_store(
    out_dir: str | Path,
    num_products: int = 2_000,
    num_queries: int = 40_000,
    seed: int = 0,
    *,
    num_held_out: int = 2_000,
    on_progress: Callable[[int], None] | None = None,
) -> SimulatedStore:
    """Write ``products.parquet``, ``clicks.parquet`` and ``held_out.parquet`` to ``out_dir``.

    The same arguments give the same rows. A larger ``num_queries`` only adds rows.

    Args:
        out_dir: a directory, made if missing; files of these names are replaced.
        num_products: K, up to 50 million; memory is some 60 bytes a product.
        num_queries: rows of the log.
        seed: of everything.
        num_held_out: rows to evaluate on; may be 0.
        on_progress: called with the number of rows written since the last call.

    Raises:
        InvalidInput: if a number is out of its range.
    """
    if not 1 <= num_products <= _MAX_PRODUCTS:
        raise InvalidInput("num_products", f"must be from 1 to {_MAX_PRODUCTS:,}")
    if num_queries < 1 or num_held_out < 0 or seed < 0:
        raise InvalidInput("num_queries", "must be at least 1; num_held_out and seed at least 0")
    directory = Path(out_dir)
    directory.mkdir(parents=True, exist_ok=True)
    store = SimulatedStore(
        directory / "products.parquet", directory / "clicks.parquet", directory / "held_out.parquet"
    )
    products = Products(num_products, seed)
    clicks = Clicks(products, seed)
    _write(store.products, map(products.table, range(products.num_chunks)), on_progress)
    _write(store.clicks, _rows(clicks, num_queries, 0), on_progress)
    _write(store.held_out, _rows(clicks, num_held_out, 1), on_progress)
    return store


def _rows(clicks: Clicks, count: int, stream: int) -> Iterator[pa.Table]:
    for chunk in range(max(1, -(-count // ROWS))):
        yield clicks.table(chunk, stream=stream).slice(0, count - chunk * ROWS)


def _write(
    path: Path, tables: Iterator[pa.Table], on_progress: Callable[[int], None] | None
) -> None:
    with atomic_path(path) as draft:
        writer: pq.ParquetWriter | None = None
        try:
            for table in tables:
                writer = writer or pq.ParquetWriter(draft, table.schema)
                writer.write_table(table)
                if on_progress:
                    on_progress(table.num_rows)
        finally:
            if writer is not None:
                writer.close()

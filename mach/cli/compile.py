"""``mach compile``: compile what serving needs, for other machines too."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import typer

from mach.cli.console import out

__all__ = ["register"]

_CLASSES, _REPETITIONS, _BUCKETS, _MANY_BUCKETS = 1_000, 2, 100, 70_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compile")(compile_ahead)


def compile_ahead(
    directory: Path = typer.Argument(..., help="Directory to make.", metavar="DIR"),
) -> None:
    """Compile ahead what an aggregator would compile at its first start: takes half a minute.

    For images: where MACH_COMPILED names DIR and NUMBA_CACHE_DIR a directory to write to, an
    aggregator of the same installation starts without compiling.
    """
    from mach import compiled

    root = Path(compiled.__file__).parents[1]
    packages = ("mach", "aggregator")
    begun = time.monotonic()
    sources = [path for package in packages for path in (root / package).rglob("*.py")]
    compiled.begin(directory, sources)
    _compile()
    size = compiled.finish(directory)
    took = time.monotonic() - begun
    out.print(f"{directory}: {size / 1e6:.0f} MB, in {took:.0f} s", markup=False)


def _compile() -> None:
    """Use everything compiled once, on what is read from files as servers read it."""
    import numpy as np
    import pyarrow as pa

    from aggregator.scores import read_scores
    from mach.bundle.writer import write_features
    from mach.features import FeatureSettings, Featurizer, SlotCounter
    from mach.hashing import UniversalHash
    from mach.merge import BucketTable, MergeRule, TopK
    from mach.v1 import shard_pb2
    from mach.wire import encode_rows

    def by_hash(buckets: int) -> BucketTable:
        return BucketTable.from_hash(
            UniversalHash.draw(_CLASSES, buckets, _REPETITIONS, 0), _CLASSES
        )

    few, many = by_hash(_BUCKETS), by_hash(_MANY_BUCKETS)
    stored = BucketTable.from_assignment(few.columns(), _BUCKETS)
    with tempfile.TemporaryDirectory() as temporary:
        for number, table in enumerate((few, many, stored)):
            file = Path(temporary) / f"{number}.bin"
            table.save(file)
            TopK(BucketTable.open(file))
        settings, file = FeatureSettings(), Path(temporary) / "features.arrow"
        counter = SlotCounter(settings)
        counter.add(["compile"] * 10)
        write_features(file, counter.featurizer())
        with pa.memory_map(str(file)) as source:
            features = pa.ipc.open_file(source).read_all()
            Featurizer.from_arrow(settings, features).batch(["compile"])
    rows = encode_rows(np.zeros((1, _BUCKETS), np.float32), shard_pb2.ENCODING_UINT8)
    scores = read_scores({0: rows}, shard_pb2.ENCODING_UINT8, 1, _BUCKETS, MergeRule(0.0))
    scores.scores(0, np.empty((1, _BUCKETS), np.float32))

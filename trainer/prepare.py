"""From files to training examples: read, group, count features, featurize; once per run."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mach.bundle import (
    CATALOG_FILE,
    FEATURES_FILE,
    Catalog,
    FileEntry,
    hash_file,
    write_catalog,
    write_features,
)
from mach.errors import DataError, InvalidInput
from mach.files import flush
from trainer.catalog import catalog_from_log, read_catalog
from trainer.examples import ExamplesReader
from trainer.featurize import count_features, write_examples
from trainer.gather import gather, held_out_queries
from trainer.interactions import check_columns
from trainer.progress import Reporter
from trainer.settings import TrainSettings
from trainer.spill import Groups

__all__ = ["PreparedData", "prepare"]

_INFO_FILE = "data.json"
_FILES = (CATALOG_FILE, FEATURES_FILE)


@dataclass(frozen=True, eq=False)
class PreparedData:
    """The directory that :func:`prepare` made.

    Attributes:
        directory: holds ``catalog.arrow``, ``features.arrow``, and examples in ``train`` and
            ``held-out``.
        num_classes: K.
        num_features: F.
        report: counts of what was read and what was skipped, for the manifest.
        files: lengths and hashes of those that go into the bundle as they are, by name.
    """

    directory: Path
    num_classes: int
    num_features: int
    report: dict[str, Any]
    files: dict[str, FileEntry]

    @classmethod
    def open(cls, directory: Path) -> PreparedData:
        """Open a directory.

        Raises:
            DataError: if it is not complete.
        """
        try:
            info = json.loads((directory / _INFO_FILE).read_text())
            files = {name: FileEntry(**info["files"][name]) for name in _FILES}
            return cls(directory, info["num_classes"], info["num_features"], info["report"], files)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(directory, f"prepared data cannot be read: {error}") from error

    def check(self) -> None:
        """Hash what goes into the bundle, and look at the length of what is only trained on.

        Raises:
            DataError: if a file is missing, or is not as it was written.
        """
        ExamplesReader(self.directory / "train")
        ExamplesReader(self.directory / "held-out")
        for name, entry in self.files.items():
            path = self.directory / name
            try:
                intact = path.stat().st_size == entry.size and hash_file(path) == entry
            except OSError as error:
                raise DataError(path, f"cannot be read: {error.strerror}") from error
            if not intact:
                raise DataError(path, "is damaged: its content has changed")

    @property
    def train(self) -> ExamplesReader:
        """The training part."""
        return ExamplesReader(self.directory / "train")

    @property
    def held_out(self) -> ExamplesReader:
        """The held-out part; may be empty."""
        return ExamplesReader(self.directory / "held-out")


def prepare(
    interactions: Sequence[Path],
    catalog: Path | None,
    settings: TrainSettings,
    directory: Path,
    reporter: Reporter,
) -> PreparedData:
    """Read the log once (twice without a catalog) and write examples to ``directory``.

    The directory appears complete, by a rename, or not at all. Where another process made it
    in the meantime, that one's is used: both hold the same.

    Raises:
        DataError: if an input cannot be used.
        InvalidInput: if the settings leave nothing to train on.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    staging.chmod(0o755)  # machines that share it may be other users
    try:
        _prepare(interactions, catalog, settings, staging, reporter)
        with suppress(OSError):  # taken: another process was faster
            staging.rename(directory)
            flush(directory.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return PreparedData.open(directory)


def _prepare(
    interactions: Sequence[Path],
    catalog: Path | None,
    settings: TrainSettings,
    staging: Path,
    reporter: Reporter,
) -> None:
    for path in interactions:
        check_columns(path)  # a mistake in the last file shows before the first is read
    if catalog is None:
        reporter.say("reading product ids from the log")
        table = catalog_from_log(interactions)
    else:
        table = read_catalog(catalog)
    write_catalog(staging / CATALOG_FILE, table)
    del table
    products = Catalog.open(staging / CATALOG_FILE)
    pairs = staging / "pairs"
    pairs.mkdir()
    spill, report = gather(interactions, catalog, products, pairs, settings, reporter)
    held_out, rest = held_out_queries(spill, settings.validation_max)

    def train_parts() -> Iterator[Groups]:
        if len(rest):
            yield rest
        yield from spill.parts()

    featurizer = count_features(train_parts(), settings, reporter)
    write_features(staging / FEATURES_FILE, featurizer)
    blank = write_examples(staging / "held-out", [held_out], featurizer, settings)
    blank += write_examples(staging / "train", train_parts(), featurizer, settings, reporter)
    shutil.rmtree(pairs)
    train = ExamplesReader(staging / "train")
    if not len(train):
        raise InvalidInput("min_count", "no training query has a feature that is kept")
    counts = {
        **report.to_json(),
        "queries": len(train),
        "held_out_queries": len(ExamplesReader(staging / "held-out")),
        "queries_without_features": blank,
    }
    info = {
        "num_classes": len(products),
        "num_features": featurizer.num_features,
        "report": counts,
        "files": {name: hash_file(staging / name).model_dump() for name in _FILES},
    }
    (staging / _INFO_FILE).write_text(json.dumps(info))
    for path in (*staging.rglob("*"), staging):
        flush(path)
    reporter.say(
        f"{report.rows:,} rows: {counts['queries']:,} queries to train on, "
        f"{counts['held_out_queries']:,} held out, "
        f"{len(products):,} products, {featurizer.num_features:,} features"
    )
    for line in report.lines():
        reporter.say(f"note: {line}")

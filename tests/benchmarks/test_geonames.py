"""The split of GeoNames aliases."""

from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.accuracy.geonames import name_key, split_names, write_parquet

PLACES = [
    ("1", ["München", "Munich", "MUNICH", "Monaco di Baviera", "Monachium", "Mnichov"]),
    ("2", ["Roma", "Rome", "rome ", "ＲＯＭＥ", "Rom"]),  # 3 distinct names
    ("3", ["San José", "San Jose", "S. José", "Sanjose", "SJ", ""]),
    ("4", ["San Jose", "Saint Joseph", "St. Joseph", "Joseph", "J."]),
]


def pairs(side: dict[str, list[str]]) -> set[tuple[str, str]]:
    return {(name_key(name), place) for name, places in side.items() for place in places}


def test_spellings_that_are_one_name() -> None:
    assert name_key(" ＲＯＭＥ ") == name_key("rome")
    assert name_key("Straße") == name_key("STRASSE")
    assert name_key("São") != name_key("Sao")


def test_no_name_of_a_place_is_on_both_sides() -> None:
    for seed in range(50):
        train, dev = split_names(PLACES, seed=seed)
        assert not pairs(train) & pairs(dev)
        assert sorted(place for _, place in pairs(dev)) == ["1", "3", "4"]
        everything = {(name_key(n), place) for place, names in PLACES for n in names} - {("", "3")}
        assert pairs(train) | pairs(dev) == everything
        for place, names in PLACES:
            assert (name_key(names[0]), place) in pairs(train)


def test_the_split_is_fixed() -> None:
    assert split_names(PLACES) == split_names(PLACES)
    assert len({str(split_names(PLACES, seed=seed)) for seed in range(20)}) > 1


def test_files(tmp_path: Path) -> None:
    train, dev = split_names(PLACES)
    write_parquet(tmp_path, train, dev, {place: names[0] for place, names in PLACES})
    table = pq.read_table(tmp_path / "train.parquet")
    assert dict(zip(*table.to_pydict().values(), strict=True)) == train
    catalog = pq.read_table(tmp_path / "catalog.parquet").to_pydict()
    assert catalog["title"] == ["München", "Roma", "San José", "San Jose"]

"""Catalogs, and the way from product id to class."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.bundle import write_catalog
from mach.errors import DataError
from tests.trainer.files import write_rows
from trainer import catalog as module
from trainer.catalog import ClassIndex, catalog_from_log, read_catalog

ROWS = [
    {"product_id": f"p{i}", "title": f"Title {i}", "price": i / 2, "in_stock": i % 2 == 0}
    for i in range(20)
]


@pytest.mark.parametrize(
    "name", ["c.parquet", "c.csv", "c.tsv", "c.jsonl", "c.csv.gz", "c.jsonl.gz"]
)
def test_every_format_keeps_ids_and_types(tmp_path, name):
    table = read_catalog(write_rows(tmp_path / name, ROWS))
    assert table.to_pylist() == ROWS


def test_ids_and_titles_of_digits_stay_text(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("product_id,title\n007,300\n7,1984\n")
    assert read_catalog(path).to_pylist() == [
        {"product_id": "007", "title": "300"},
        {"product_id": "7", "title": "1984"},
    ]
    pq.write_table(pa.table({"product_id": [3, 10]}), tmp_path / "c.parquet")
    assert read_catalog(tmp_path / "c.parquet")["product_id"].to_pylist() == ["3", "10"]


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.csv.gz"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["5", "001123", "", "3"], ["5", "001123", None, "3"]),
        (["1.50", "00", "7", "1e3"], ["1.50", "00", "7", "1e3"]),
        (["99999999999999999999", "01", "+5", "-3"], ["99999999999999999999", "01", "+5", "-3"]),
        (["0", "10", "", "-3"], [0, 10, None, -3]),
        (["0.5", "0", "", "2"], [0.5, 0.0, None, 2.0]),
        (["00112", "A7", "", "2"], ["00112", "A7", None, "2"]),
        (["18446744073709551616", "5", "", "2"], ["18446744073709551616", "5", None, "2"]),
        (["12345678901234567", "0.5", "", "2"], ["12345678901234567", "0.5", None, "2"]),
        (["9223372036854775807", "5", "", "-2"], [9223372036854775807, 5, None, -2]),
        (["1e20", "0.12345678901234567", "", "2"], [1e20, 0.12345678901234567, None, 2.0]),
    ],
)
def test_a_csv_column_of_codes_stays_text(tmp_path, name, values, expected):
    rows = [
        {"product_id": f"{i:02}", "sku": value, "title": "01", "price": i}
        for i, value in enumerate(values)
    ]
    table = read_catalog(write_rows(tmp_path / name, rows))
    assert table.to_pylist() == [
        row | {"sku": value} for row, value in zip(rows, expected, strict=True)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("product_id,title\na,A\nb,B\na,C\n", "row 3: product_id 'a' occurs more than once"),
        ("product_id,title\na,A\n,B\n", "row 2: product_id is missing"),
        ("product_id,title\na,A\n  ,B\n", "row 2: product_id is missing"),
        ("id,title\na,A\n", "needs one column product_id, and has id, title"),
        ("product_id,product_id\na,A\n", "needs one column product_id"),
        ("product_id,price,price\na,1,2\n", "column 'price' occurs more than once"),
        ("product_id,title\n", "has no rows"),
        ("", "is empty"),
        ("product_id,title\na,A\nb,B,C\n", "row 2: Expected 2 columns, got 3"),
    ],
)
def test_a_csv_catalog_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "c.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_catalog(path)


def test_other_catalogs_that_cannot_be_used(tmp_path):
    path = tmp_path / "c.parquet"
    for column in ([1.5], [["a"]], [True], [{"a": 1}]):
        pq.write_table(pa.table({"product_id": column}), path)
        with pytest.raises(DataError, match="must be text or whole numbers"):
            read_catalog(path)
    pq.write_table(pa.table([["a"], [1], [2]], ["product_id", "price", "price"]), path)
    with pytest.raises(DataError, match="column 'price' occurs more than once"):
        read_catalog(path)
    pq.write_table(pa.table({"product_id": pa.array([b"a", b"\xff"]).view(pa.string())}), path)
    with pytest.raises(DataError, match="column product_id is not UTF-8 text"):
        read_catalog(path)
    for kind in (pa.string(), pa.large_string()):
        titles = pa.array(
            [b"a", b"\xff"], pa.large_binary() if kind != pa.string() else pa.binary()
        )
        pq.write_table(pa.table({"product_id": ["a", "b"], "brand": titles.view(kind)}), path)
        with pytest.raises(DataError, match="column brand is not UTF-8 text"):
            read_catalog(path)
    for column in ([1, 2], [["a"], ["b"]]):
        pq.write_table(pa.table({"product_id": ["a", "b"], "title": column}), path)
        with pytest.raises(DataError, match=r"column title is .*, it must be text"):
            read_catalog(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"product_id": 1.5}', "row 3: product_id is float, it must be text or a whole number"),
        ('{"product_id": ["b"]}', "row 3: product_id is list"),
        ('{"product_id": "b", "price": "cheap"}', "row 3: price is str, it must be int"),
        ('{"product_id": "b", "title": 5}', "row 3: title is int, it must be str"),
        ('{"product_id": "b"', "row 3: is not valid JSON"),
        ('{"title": "b"}', "row 2: product_id is missing"),
    ],
)
def test_a_jsonl_catalog_that_cannot_be_used(tmp_path, bad, message):
    path = tmp_path / "c.jsonl"
    path.write_text('{"product_id": 1, "price": 3}\n\n' + bad + "\n")
    with pytest.raises(DataError, match=message):
        read_catalog(path)


def test_chunks_of_a_jsonl_catalog_may_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 1)
    path = tmp_path / "c.jsonl"
    path.write_text('{"product_id": "a", "price": 3}\n{"product_id": 4, "price": 2.5, "x": 1}\n')
    assert read_catalog(path).to_pylist() == [
        {"product_id": "a", "price": 3.0, "x": None},
        {"product_id": "4", "price": 2.5, "x": 1},
    ]


def test_a_catalog_from_the_log_holds_each_product_once(tmp_path, monkeypatch):
    rows = [{"query": "q", "product_ids": [f"p{i % 7}", f"r{i % 11}"]} for i in range(200)]
    path = write_rows(tmp_path / "log.jsonl", [*rows, {"query": "", "product_ids": ["unseen"]}])
    found = catalog_from_log([path, path])["product_id"].to_pylist()
    assert sorted(found) == sorted({f"p{i}" for i in range(7)} | {f"r{i}" for i in range(11)})


@given(st.sets(st.text(max_size=6)), st.lists(st.text(max_size=6)))
def test_lookup_is_exact(known, asked):
    ids = pa.array(sorted(known), pa.large_string())
    classes = ClassIndex(ids).lookup(pa.array(asked, pa.string())) if known else []
    expected = {text: number for number, text in enumerate(sorted(known))}
    assert list(classes) == [expected.get(text, -1) for text in asked][: len(classes)]


def test_an_unknown_id_with_the_hash_of_a_known_one_is_unknown(monkeypatch):
    monkeypatch.setattr(
        module.xxhash, "xxh3_64_intdigest", lambda data, seed: data[0] * (1 if seed else 0)
    )
    index = ClassIndex(pa.array(["a", "b", "c"], pa.large_string()))  # seed 0 collides
    assert list(index.lookup(pa.array(["b", "bad", "a"]))) == [1, -1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"product_id,x\na,A\nb,\xe9\nc,C\n", "row 2: x is not UTF-8 text"),
        (b"product_id,\xe9\na,A\n", "the names of its columns are not UTF-8"),
    ],
)
def test_a_csv_catalog_that_is_not_utf8(tmp_path, content, message):
    path = tmp_path / "c.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_catalog(path)


def test_half_a_character_is_no_name_of_a_column(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"product_id": "a", "\\ud800": 1}\n')
    with pytest.raises(DataError, match="cannot be the name of a column"):
        read_catalog(path)
    path.write_text('{"product_id": "a", "caf\\u00e9 \\u00a0 \\ud83d\\ude00": 1}\n')
    assert read_catalog(path).column_names == ["product_id", "café \xa0 😀"]


def test_every_kind_of_text_and_no_other_is_an_id(tmp_path):
    path = tmp_path / "c.parquet"
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary()):
        column = pa.array([b"a", b"b"], pa.binary()).cast(kind)
        table = pa.table({"product_id": column, "title": column.cast(pa.string_view())})
        pq.write_table(table, path)
        found = read_catalog(path)
        assert found.to_pylist() == [{"product_id": i, "title": i} for i in "ab"]
        write_catalog(tmp_path / "catalog.arrow", found)
    for column in (pa.array([1], pa.date32()), pa.array([1], pa.decimal128(5))):
        pq.write_table(pa.table({"product_id": column}), path)
        with pytest.raises(DataError, match="must be text or whole numbers"):
            read_catalog(path)

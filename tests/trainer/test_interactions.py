"""Reading a log: what comes in equals what was written, and what is wrong is named."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mach.errors import DataError
from tests.trainer.files import write_rows
from trainer import interactions
from trainer.interactions import SkipReport, read_interactions, read_queries
from trainer.tables import delimited, files, parquet

FORMATS = ["log.parquet", "log.csv", "log.tsv", "log.jsonl", "log.csv.gz", "log.jsonl.gz"]
# Not blank, and without "|", which separates ids in CSV and TSV.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="|\0"), max_size=8).map(
    lambda text: "q" + text
)


def flat(paths, report=None):
    """(query, product, weight) of every pair."""
    rows = []
    for batch in read_interactions(paths, report or SkipReport()):
        queries, products = batch.queries.to_pylist(), batch.products.to_pylist()
        assert len(queries) == len(batch.weights)
        rows += [
            (queries[row], product, float(batch.weights[row]))
            for row, product in zip(batch.pair_rows, products, strict=True)
        ]
    return rows


@pytest.mark.parametrize("name", FORMATS)
@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3), st.floats(1e-3, 1e6)),
        min_size=1,
        max_size=20,
    )
)
def test_every_format_gives_back_the_rows(tmp_path, name, rows):
    path = write_rows(
        tmp_path / name,
        [{"query": q, "product_ids": ids, "weight": w} for q, ids, w in rows],
    )
    assert flat([path]) == [(q, p, pytest.approx(w)) for q, ids, w in rows for p in ids]
    assert list(read_queries([path])) == [(q, list(dict.fromkeys(ids))) for q, ids, _ in rows]


@pytest.mark.parametrize("name", FORMATS)
def test_one_pair_a_row_without_weights_and_other_columns(tmp_path, name):
    path = write_rows(
        tmp_path / name,
        [{"time": i, "product_id": f"p{i}", "query": f"word {i}"} for i in range(50)],
    )
    assert flat([path, path]) == 2 * [(f"word {i}", f"p{i}", 1.0) for i in range(50)]


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl", "log.csv"])
def test_ids_may_be_whole_numbers(tmp_path, name):
    path = write_rows(tmp_path / name, [{"query": "a", "product_id": 7}])
    assert flat([path]) == [("a", "7", 1.0)]


def test_any_row_of_json_lines_may_have_a_weight(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [{"query": "a", "product_id": "p"}, {"query": "b", "product_id": "p", "weight": 3}]
    assert flat([write_rows(path, rows)]) == [("a", "p", 1.0), ("b", "p", 3.0)]
    write_rows(path, [*rows, {"query": "c", "product_id": "p", "weight": -5}])
    with pytest.raises(DataError, match=r"row 3: weight is -5\.0"):
        flat([path])


def test_json_lists_in_csv(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('query,product_ids\na,"[""x|y"", 3]"\nb,u|v\n')
    assert flat([path]) == [("a", "x|y", 1.0), ("a", "3", 1.0), ("b", "u", 1.0), ("b", "v", 1.0)]


def test_batches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH_ROWS", 10)
    rows = [{"query": f"q{i}", "product_id": "p"} for i in range(95)]
    for name in FORMATS:
        batches = list(read_interactions([write_rows(tmp_path / name, rows)], SkipReport()))
        assert max(len(batch.queries) for batch in batches) <= 10
        assert sum(len(batch.queries) for batch in batches) == 95


@pytest.mark.parametrize("name", ["log.parquet", "log.jsonl"])
@pytest.mark.parametrize(
    "rows",
    [
        [{"query": f"q{i}", "product_ids": [f"p{j}" for j in range(50)]} for i in range(40)],
        [{"query": f"q{i}", "product_ids": ["p" * 4_000]} for i in range(40)],
        [{"query": f"q{i}", "product_id": "p" * 4_000} for i in range(40)],
        [{"query": f"q{i}" * 1_300, "product_id": "p"} for i in range(40)],
    ],
    ids=["many ids", "long ids", "a long id", "long queries"],
)
def test_batches_are_bounded_by_ids_and_text(tmp_path, monkeypatch, name, rows):
    monkeypatch.setattr(files, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(parquet, "_SLICE_ROWS", 1)
    path = write_rows(tmp_path / name, rows)
    batches = list(read_interactions([path], SkipReport()))
    assert max(len(batch.queries) for batch in batches) <= 4
    assert [query for batch in batches for query in batch.queries.to_pylist()] == [
        row["query"] for row in rows
    ]
    assert sum(len(batch.products) for batch in batches) == sum(
        len(row.get("product_ids", "1")) for row in rows
    )


def test_rows_longer_than_a_block_of_csv(tmp_path, monkeypatch):
    """Reading begins anew with larger blocks, and gives no row twice."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(files, "BATCH_ROWS", 7)
    queries = [f"q{i}" * (500 if i % 90 == 89 else 1) for i in range(300)]
    rows = [{"query": query, "product_id": "p"} for query in queries]
    for name in ("log.csv", "log.tsv.gz"):
        path = write_rows(tmp_path / name, rows)
        assert [query for query, *_ in flat([path])] == queries


# What is skipped and counted ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.tsv", "log.jsonl"])
def test_rows_without_query_product_or_weight_are_counted(tmp_path, name):
    rows = [{"query": "good", "product_ids": ["p", "r"], "weight": 2.0}] * 3
    rows += [
        {"query": "  ", "product_ids": ["p"], "weight": 1.0},
        {"query": "none", "product_ids": [""], "weight": 1.0},
        {"query": "zero", "product_ids": ["p"], "weight": 0.0},
        {"query": "part", "product_ids": ["p", " "], "weight": 1.0},
    ]
    path = write_rows(tmp_path / name, rows)
    report = SkipReport()
    assert flat([path], report) == 3 * [("good", "p", 2.0), ("good", "r", 2.0)] + [
        ("part", "p", 1.0)
    ]
    assert report.skipped == {
        interactions.NO_QUERY: 1,
        interactions.NO_PRODUCT: 1,
        interactions.NO_WEIGHT: 1,
    }
    assert report.first[interactions.NO_QUERY] == f"{path}, row 4"
    assert report.first[interactions.NO_WEIGHT] == f"{path}, row 6"
    assert (report.rows, report.pairs) == (7, 7)


def test_nulls_are_missing_values(tmp_path):
    rows = [
        {"query": None, "product_ids": ["p"], "weight": 1.0},
        {"query": "a", "product_ids": None, "weight": 1.0},
        {"query": "b", "product_ids": [None, "p"], "weight": None},
    ]
    for name in ("log.parquet", "log.jsonl"):
        report = SkipReport()
        assert flat([write_rows(tmp_path / name, rows)], report) == [("b", "p", 1.0)]
        assert report.skipped == {interactions.NO_QUERY: 1, interactions.NO_PRODUCT: 1}


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.tsv", "log.jsonl"])
def test_a_query_of_10_mb_is_cut_and_counted(tmp_path, name):
    rows = [{"query": "short", "product_id": "p"}, {"query": "ü" * 5_000_000, "product_id": "p"}]
    report = SkipReport()
    (_, long) = flat([path := write_rows(tmp_path / name, rows)], report)
    assert long == ("ü" * interactions.MAX_QUERY_CHARACTERS, "p", 1.0)
    assert report.skipped == {interactions.LONG_QUERY: 1}
    assert report.first[interactions.LONG_QUERY] == f"{path}, row 2"


@pytest.mark.parametrize(("name", "tab"), [("log.csv", ","), ("log.tsv", "\t")])
def test_a_quote_that_is_never_closed_is_counted(tmp_path, name, tab):
    lines = [f"query {i}{tab}p{i}" for i in range(100)]
    lines[40] = f'"24 inch tv{tab}p40'
    lines[60] = f'"15 inch laptop{tab}p60'
    path = tmp_path / name
    path.write_text("\n".join([f"query{tab}product_id", *lines]) + "\n")
    report = SkipReport()
    assert len(flat([path], report)) == 80
    assert report.skipped == {interactions.BROKEN_LINE: 1}
    assert report.first[interactions.BROKEN_LINE] == f"{path}, row 41"


def test_utf_16_is_named(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("query,product_id\na,p\n", encoding="utf-16")
    with pytest.raises(DataError, match="is UTF-16, it must be UTF-8"):
        flat([path], SkipReport())


def test_line_breaks_in_queries_and_ids_are_counted(tmp_path):
    rows = [("a", "p"), ("b\nc", "q"), ("", "r\ns"), ("d", "t\nu")]
    rows = [{"query": query, "product_id": product} for query, product in rows]
    report = SkipReport()
    path = write_rows(tmp_path / "log.csv", rows)
    assert flat([path], report) == [("a", "p", 1.0), ("b\nc", "q", 1.0), ("d", "t\nu", 1.0)]
    assert report.skipped == {interactions.NO_QUERY: 1, interactions.BROKEN_LINE: 2}
    assert report.first[interactions.BROKEN_LINE] == f"{path}, row 2"


# What is refused ------------------------------------------------------------------------------

HEAD = b"query,product_id,weight\n"
GOOD = b"".join(b"word %d,p%d,1\n" % (i, i) for i in range(40_000))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"only one field\n", "Expected 3 columns, got 1"),
        (b"a,b,c,d\n", "Expected 3 columns, got 4"),
        (b"a,b,heavy\n", "conversion error to double: invalid value 'heavy'"),
        (b"a,b,-1\n", "weight is -1.0"),
        (b"a,b,nan\n", "weight is nan"),
        (b"a,b,NULL\n", "conversion error to double: invalid value 'NULL'"),
        (b"a,b,inf\n", "weight is inf"),
        (b"a,b,1e308\n", "weight is 1e+308, it must be 0 or from 1e-30 to 1e+18"),
        (b"a,b,5e-324\n", "weight is 5e-324"),
        (b"a\xff,b,1\n", "invalid UTF8 data"),
        (b"a,\xc3\x28,1\n", "invalid UTF8 data"),
    ],
)
def test_one_bad_row_in_a_csv_is_named(tmp_path, bad, message):
    path = tmp_path / "log.csv"
    path.write_bytes(HEAD + GOOD + bad + GOOD)
    with pytest.raises(DataError, match="row 40001: ") as caught:
        flat([path])
    assert caught.value.row == 40_001
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[1]", "is no JSON object"),
        (b'{"query": 3, "product_id": "p"}', "query must be text"),
        (b'{"query": "a", "product_id": 1.5}', "product_id must be text or a whole number"),
        (b'{"query": "a", "product_id": ["p"]}', "product_id must be text or a whole number"),
        (b'{"query": "a", "product_id": "p", "weight": "2"}', "weight must be a number"),
        (b'{"query": "a", "product_id": "p", "weight": NaN}', "weight is nan"),
        (b'{"query": "a", "product_id": "p", "weight": -0.5}', "weight is -0.5"),
        (b'{"query": "a", "product_ids": ["p"]}', "has product_ids, but the first row product_id"),
        (b'{"query": "a\xff", "product_id": "p"}', "is not UTF-8 text"),
        (b'{"query": "a\\ud800", "product_id": "p"}', "half a surrogate pair"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_one_bad_row_in_json_lines_is_named(tmp_path, bad, message):
    path = tmp_path / "log.jsonl"
    good = b'{"query": "a", "product_id": "p", "weight": 1}\n'
    path.write_bytes(b"\n" + good * 3 + bad + b"\n" + good)
    with pytest.raises(DataError, match="row 5: ") as caught:
        flat([path])
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["log.csv", "log.tsv"])
def test_half_a_surrogate_pair_in_a_json_list_is_named(tmp_path, name):
    path = tmp_path / name
    rows = ["query,product_ids", "a,p|q", r'b,"[""p"", ""q""]"', r'c,"[""p"", ""\ud800""]"', "d,p"]
    tab = "," if name == "log.csv" else "\t"
    path.write_text("\n".join(row.replace(",", tab, 1) for row in rows))
    with pytest.raises(DataError, match="row 3: product_ids holds half a surrogate pair"):
        flat([path])


def parquet_with(tmp_path, **columns):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_bytes_that_are_not_utf8_in_parquet_are_named(tmp_path):
    texts = [b"fine"] * 20_000 + [b"\xff\xfe"] + [b"fine"]
    queries = pa.array(texts, pa.binary())
    ids = pa.array(["p"] * len(texts))
    for column in (queries, queries.view(pa.string())):  # a writer that never looked
        with pytest.raises(DataError, match="row 20001: query is not UTF-8 text"):
            flat([parquet_with(tmp_path, query=column, product_id=ids)])
    with pytest.raises(DataError, match="row 20001: product_id is not UTF-8 text"):
        flat([parquet_with(tmp_path, query=ids, product_id=queries.view(pa.string()))])


def test_column_names_that_are_not_utf8_in_parquet_are_named(tmp_path):
    path = parquet_with(tmp_path, query=["a"], product_id=["p"], price=[1])
    path.write_bytes(path.read_bytes().replace(b"price", b"pri\xffe"))
    with pytest.raises(DataError, match="the names of its columns are not UTF-8") as caught:
        flat([path])
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": [1], "product_id": ["p"]}, "column query is int64, it must be text"),
        ({"query": ["a"], "product_id": [1.5]}, "column product_id is double"),
        ({"query": ["a"], "product_id": [["p"]]}, "column product_id is list"),
        ({"query": ["a"], "product_ids": ["p"]}, "column product_ids is string"),
        ({"query": ["a"], "product_id": ["p"], "weight": ["1"]}, "column weight is string"),
        ({"text": ["a"], "product_id": ["p"]}, "has no column query, only text, product_id"),
        ({"query": ["a"], "item": ["p"]}, "needs a column product_id or product_ids"),
        ({"query": ["a"], "product_id": ["p"], "product_ids": [["p"]]}, "has both columns"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        flat([parquet_with(tmp_path, **columns)])


def test_dictionary_and_large_types_are_read(tmp_path):
    queries = pa.array(["a", "b"]).dictionary_encode()
    ids = pa.array([["1"], ["2", "3"]], pa.large_list(pa.large_string()))
    weights = pa.array(np.array([1, 2], np.int16))
    path = parquet_with(tmp_path, query=queries, product_ids=ids, weight=weights)
    assert flat([path]) == [("a", "1", 1.0), ("b", "2", 2.0), ("b", "3", 2.0)]


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.tsv", "log.jsonl", "log.csv.gz"])
def test_files_that_are_empty_missing_or_nonsense(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(DataError, match="no such file"):
        flat([path])
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        flat([path])
    path.write_bytes(b"\0\1\2\3 nothing of the kind" * 40)
    with pytest.raises(DataError):
        flat([path])
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="is not a file"):
        flat([path])


@pytest.mark.parametrize(
    ("name", "content"),
    [("log.csv", b"query,product_id\n"), ("log.tsv", b"query\tproduct_id\n"), ("log.jsonl", b"\n")],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="has no rows"):
        flat([tmp_path / name])


def test_truncated_files_are_refused(tmp_path):
    rows = [{"query": f"q{i}" * 20, "product_id": "p"} for i in range(2000)]
    for name in ("log.parquet", "log.csv.gz"):
        path = write_rows(tmp_path / name, rows)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DataError, match="cannot be read"):
            flat([path])


def test_unknown_endings_are_refused(tmp_path):
    for name in ("log.txt", "log", "log.parquet.gz"):
        (tmp_path / name).write_text("query,product_id\na,b\n")
        with pytest.raises(DataError, match="unknown format"):
            flat([tmp_path / name])


def test_a_quote_never_closed_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW_BYTES", 1 << 16)
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 1 << 14)
    path = tmp_path / "log.csv"
    path.write_bytes(HEAD + GOOD[:1000].rsplit(b"\n", 1)[0] + b'\n"open,p,1\n' + GOOD)
    with pytest.raises(DataError, match="a quote that is never closed"):
        flat([path])
    path = tmp_path / "log.jsonl"
    row = {"query": "x" * (3 << 20), "product_id": "p"}
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(DataError, match="row 2: is longer than"):
        flat([path])


def test_doubled_columns_are_refused(tmp_path):
    path = tmp_path / "log.parquet"
    column = pa.array(["a"])
    pq.write_table(pa.table([column] * 3, ["query", "query", "product_id"]), path)
    with pytest.raises(DataError, match="column query occurs more than once"):
        flat([path])
    path = tmp_path / "log.csv"
    path.write_text("query,query,product_id\na,b,c\n")
    with pytest.raises(DataError, match="column query occurs more than once"):
        flat([path])

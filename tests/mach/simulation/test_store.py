"""The simulated store: the same from the same seed, shaped like a store, of any size."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mach.errors import InvalidInput
from mach.simulation import clicks as clicks_module
from mach.simulation import products as products_module
from mach.simulation import simulate_store
from mach.simulation.vocabulary import TYPES, brand_names


def read(store):
    return [pq.read_table(path) for path in (store.products, store.clicks, store.held_out)]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return read(simulate_store(tmp_path_factory.mktemp("store"), 500, 20_000, 1))


def test_the_same_seed_gives_the_same_store(tmp_path, tables):
    again = read(simulate_store(tmp_path / "again", 500, 20_000, 1))
    other = read(simulate_store(tmp_path / "other", 500, 20_000, 2))
    assert again == tables
    assert all(mine != theirs for mine, theirs in zip(tables, other, strict=True))


def test_sizes_beyond_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(products_module, "CHUNK", 64)
    monkeypatch.setattr(clicks_module, "CHUNK", 64)
    written = []
    store = simulate_store(tmp_path, 200, 300, 1, num_held_out=0, on_progress=written.append)
    products, clicks, held_out = read(store)
    assert (products.num_rows, clicks.num_rows, held_out.num_rows) == (200, 300, 0)
    assert sum(written) == 500
    ids = products["product_id"].to_pylist()
    assert ids == sorted(set(ids))
    assert set(clicks["product_id"].to_pylist()) <= set(ids)


def test_more_queries_only_add_rows(tmp_path):
    small = pq.read_table(simulate_store(tmp_path / "a", 100, 1_000, 5).clicks)
    large = pq.read_table(simulate_store(tmp_path / "b", 100, 200_000, 5).clicks)
    assert large.num_rows == 200_000
    assert large.slice(0, 1_000).equals(small)


def test_columns(tables):
    products, clicks, held_out = tables
    assert products.schema == pa.schema(
        {
            "product_id": pa.string(), "title": pa.string(), "brand": pa.string(),
            "category": pa.string(), "color": pa.string(), "price": pa.float64(),
            "in_stock": pa.bool_(),
        }
    )  # fmt: skip
    assert clicks.column_names == held_out.column_names == ["query", "product_id"]
    assert all(
        table.column(name).null_count == 0 for table in tables for name in table.column_names
    )
    assert min(products["price"].to_pylist()) > 0
    assert 0.85 < np.mean(products["in_stock"].to_pylist()) < 0.97
    categories = {kind.category for kind in TYPES}
    assert set(products["category"].to_pylist()) == categories


def test_clicks_have_a_long_tail(tables):
    counts = np.array(sorted(Counter(tables[1]["product_id"].to_pylist()).values())[::-1])
    assert len(counts) > 480
    assert 0.05 < counts[0] / counts.sum() < 0.2
    assert counts[:50].sum() > 0.4 * counts.sum()
    assert counts[250:].sum() > 0.1 * counts.sum()


def test_queries_speak_of_the_product_clicked(tables):
    products, clicks, _ = tables
    titles = dict(
        zip(products["product_id"].to_pylist(), products["title"].to_pylist(), strict=True)
    )
    synonyms = {w for kind in TYPES for s in kind.synonyms for w in s.split()}
    shared = misspelt = synonymous = 0
    for query, product in zip(*(clicks[c].to_pylist() for c in clicks.column_names), strict=True):
        title = set(titles[product].lower().split())
        words = set(query.split())
        shared += bool(words & title)
        synonymous += bool(words & (synonyms - title))
        misspelt += bool(words - title - synonyms)
    assert shared > 0.97 * clicks.num_rows
    assert 0.05 < misspelt / clicks.num_rows < 0.15
    assert 0.15 < synonymous / clicks.num_rows < 0.4


def test_what_is_held_out_is_like_the_log_but_not_of_it(tables):
    _, clicks, held_out = tables
    assert held_out.num_rows == 2_000
    assert not held_out.equals(clicks.slice(0, 2_000))
    seen = set(clicks["query"].to_pylist())
    unseen = np.mean([query not in seen for query in held_out["query"].to_pylist()])
    assert 0.05 < unseen < 0.6


def test_brand_names_are_different():
    names = brand_names(3_000, np.random.default_rng(0))
    assert len(set(names)) == 3_000


@pytest.mark.parametrize("arguments", [(0, 10, 0), (51_000_000, 10, 0), (10, 0, 0), (10, 10, -1)])
def test_sizes_out_of_range(tmp_path, arguments):
    with pytest.raises(InvalidInput):
        simulate_store(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_one_product(tmp_path):
    products, clicks, _ = read(simulate_store(tmp_path, 1, 50, 0, num_held_out=1))
    assert set(clicks["product_id"].to_pylist()) == set(products["product_id"].to_pylist())

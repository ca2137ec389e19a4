"""Grouping by query, and the held-out part."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.spill import HELD_OUT, Spill, group_pairs

PAIRS = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 5), st.integers(1, 9)), max_size=40
)


def arrays(pairs):
    queries = pa.array([q for q, _, _ in pairs], pa.large_string())
    classes = np.array([c for _, c, _ in pairs], np.int32)
    return queries, np.arange(len(pairs)), classes, np.array([w for *_, w in pairs], float)


def as_dict(groups):
    result = {}
    for number, query in enumerate(groups.queries.to_pylist()):
        first, last = groups.splits[number : number + 2]
        classes = groups.classes[first:last].tolist()
        assert classes == sorted(set(classes))
        assert query not in result
        result[query] = dict(zip(classes, groups.weights[first:last].tolist(), strict=True))
    return result


def reference(pairs):
    result = defaultdict(lambda: defaultdict(float))
    for query, cls, weight in pairs:
        result[query][cls] += weight
    return {query: dict(found) for query, found in result.items()}


@given(PAIRS)
def test_weights_of_repeats_add_up(pairs):
    assert as_dict(group_pairs(*arrays(pairs))) == reference(pairs)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(PAIRS, max_size=4), st.integers(1, 5), st.integers(1, 300), st.data())
def test_every_query_is_whole_in_one_part(tmp_path_factory, batches, parts, buffer, data):
    held_out = data.draw(st.sampled_from([0.0, 0.3, 0.999]))
    directory = tmp_path_factory.mktemp("spill")
    spill = Spill(directory, parts, held_out=held_out, seed=5, buffer_bytes=buffer)
    for batch in batches:
        spill.add(*arrays(batch))
    spill.close()
    found = {}
    for groups in [spill.part(HELD_OUT), *spill.parts()]:
        part = as_dict(groups)
        assert not part.keys() & found.keys()
        found |= part
    assert found == reference([pair for batch in batches for pair in batch])


def test_the_held_out_share_is_about_what_was_asked(tmp_path):
    pairs = [(f"query {i}", 0, 1) for i in range(20_000)]
    spill = Spill(tmp_path, 3, held_out=0.1, seed=0)
    spill.add(*arrays(pairs))
    spill.close()
    sizes = [len(groups) for groups in spill.parts()]
    assert 1_800 < len(spill.part(HELD_OUT)) < 2_200
    assert min(sizes) > 5_500
    assert sum(sizes) + len(spill.part(HELD_OUT)) == 20_000


def test_titles_are_never_held_out(tmp_path):
    spill = Spill(tmp_path, 2, held_out=0.9, seed=0)
    spill.add(*arrays([(f"query {i}", 0, 1) for i in range(100)]))
    spill.add(*arrays([(f"title {i}", 0, 1) for i in range(100)]), train_only=True)
    spill.add(*arrays([(f"more {i}", 0, 1) for i in range(100)]))
    spill.close()
    held_out = spill.part(HELD_OUT).queries.to_pylist()
    assert {query.split()[0] for query in held_out} == {"query", "more"}
    assert sum(len(groups) for groups in spill.parts()) + len(held_out) == 300


def test_parts_do_not_depend_on_the_order_or_buffer(tmp_path):
    pairs = [(f"query {i % 50}", i % 7, 1) for i in range(500)]
    found = []
    for buffer, rows in ((1 << 20, pairs), (100, pairs[::-1])):
        directory = tmp_path / str(buffer)
        directory.mkdir()
        spill = Spill(directory, 4, held_out=0.2, seed=9, buffer_bytes=buffer)
        for start in range(0, 500, 10):
            spill.add(*arrays(rows[start : start + 10]))
        spill.close()
        found.append([as_dict(spill.part(part)) for part in (HELD_OUT, 0, 1, 2, 3)])
    assert found[0] == found[1]


@pytest.mark.parametrize("rows", [[], [2, 0], [1, 1]])
def test_taking_rows(rows):
    groups = group_pairs(*arrays([("a", 1, 1), ("a", 2, 1), ("b", 0, 3), ("c", 5, 1)]))
    taken = groups.take(np.array(rows, np.int64))
    assert taken.queries.to_pylist() == [["a", "b", "c"][row] for row in rows]
    assert taken.classes.tolist() == [c for row in rows for c in [[1, 2], [0], [5]][row]]

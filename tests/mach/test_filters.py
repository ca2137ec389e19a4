"""The filter language: against Python's own operators, and its mistakes by the character."""

import datetime
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.errors import InvalidInput
from mach.filters import parse_filter

ROWS = [
    {"category": "drills", "price": 49.5, "stock": 3, "in_stock": True, "it's": "a"},
    {"category": "saws", "price": 120.0, "stock": 0, "in_stock": False, "it's": 'say "b"'},
    {"category": "drills", "price": None, "stock": 7, "in_stock": True, "it's": "c"},
    {"category": None, "price": 5.0, "stock": None, "in_stock": None, "it's": None},
]
TABLE = pa.Table.from_pylist(ROWS).append_column(
    "since", pa.array([datetime.date(2024, month, 1) for month in (1, 2, 3, 4)])
)
TABLE = TABLE.append_column("color", pa.array(["red", "red", "blue", None]).dictionary_encode())


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('category = "drills"', [0, 2]),
        ("category = 'drills' AND in_stock", [0, 2]),
        ('category="drills" and price < 50', [0]),
        ("price < 50 OR price >= 120", [0, 1, 3]),
        ("NOT in_stock", [1]),
        ("not (price < 50)", [1]),
        ("in_stock = false", [1]),
        ('category != "drills"', [1]),
        ('category <> "drills"', [1]),
        ('category IN ("saws", "lamps")', [1]),
        ('category NOT IN ("saws")', [0, 2]),
        ("stock IN (3, 7)", [0, 2]),
        ("price IS NULL", [2]),
        ("category IS NOT NULL", [0, 1, 2]),
        ("stock > 2.5", [0, 2]),
        ("price > 1e2", [1]),
        ("stock > -1", [0, 1, 2]),
        ('`it\'s` = "say ""b"""', [1]),
        ("`it's` = 'say \"b\"'", [1]),
        ('since >= "2024-03-01"', [2, 3]),
        ('color = "red"', [0, 1]),
        ("in_stock OR price < 50 AND stock IS NULL", [0, 2, 3]),
        ("(in_stock OR price < 50) AND stock IS NULL", [3]),
        ("NOT in_stock OR in_stock", [0, 1, 2]),
        ("in_stock AND NOT\n category = 'saws'", [0, 2]),
    ],
)
def test_conditions(text, rows):
    assert np.flatnonzero(parse_filter(text).evaluate(TABLE)).tolist() == rows


@pytest.mark.parametrize(
    ("text", "character", "says"),
    [
        ("", 1, "ends too early"),
        ("price <", 8, "ends too early"),
        ("price < 50 AND", 15, "ends too early"),
        ("price < < 50", 9, "cannot read"),
        ("price < 50)", 11, "cannot read"),
        ("(price < 50", 12, "ends too early"),
        ('category = "drills', 12, "cannot read"),
        ("price = 5 6", 11, "cannot read"),
        ("categry = 'x'", 1, "no attribute categry; there are category"),
        ("price < 1 AND nope", 15, "no attribute nope"),
        ("price = 'cheap'", 9, "price holds numbers"),
        ("category = 5", 12, "category holds text"),
        ("in_stock = 1", 12, "in_stock holds true or false"),
        ("category", 1, "category holds text"),
        ("since > 'yesterday'", 9, "is no date"),
        ("price @ 5", 7, "cannot read"),
    ],
)
def test_mistakes_point_at_the_character(text, character, says):
    with pytest.raises(InvalidInput, match=rf"filter: at character {character}: .*{says}"):
        parse_filter(text).evaluate(TABLE)


TYPED = {
    "u64": pa.array([2**64 - 1, 5, None], pa.uint64()),
    "i64": pa.array([2**60 + 1, 1, None], pa.int64()),
    "i8": pa.array([-128, 127, None], pa.int8()),
    "f16": pa.array([1, 2, None], pa.float16()),
    "f64": pa.array([2.0**60, 0.1, None]),
    "dec": pa.array([Decimal("1.50"), Decimal("-0.10"), None], pa.decimal128(38, 2)),
    "tm": pa.array([datetime.time(1, 2), datetime.time(1, 2, 3), None], pa.time64("us")),
    "seconds": pa.array([datetime.time(1, 2), datetime.time(1, 2, 3), None], pa.time32("s")),
    "dur": pa.array([1, 2, None], pa.duration("s")),
    "zoned": pa.array([1704240000, 1704240001, None], pa.timestamp("s", "Europe/Berlin")),
    "plain": pa.array([1704240000, 1704240001, None], pa.timestamp("s")),
    "nanos": pa.array([1704240000 * 10**9 + 1, 1704326400 * 10**9 + 1, None], pa.timestamp("ns")),
    "f32": pa.array([0.1, np.nan, None], pa.float32()),
    "few": pa.array([0.1, np.nan, None], pa.float32()).dictionary_encode(),
    "wide": pa.array([Decimal("-1e35"), Decimal(1), None], pa.decimal128(38, 2)),
    "view": pa.array(["a", "b", None], pa.string_view()),
    "coarse": pa.array([None, None, None], pa.decimal128(5, -2)),
    "interval": pa.array([None, None, None], pa.month_day_nano_interval()),
    "blob": pa.array([b"a", b"b", None]),
    "listed": pa.array([[1], [2], None]),
    "nothing": pa.nulls(3),
}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("u64 > 5", [0]),
        ("u64 = 18446744073709551615", [0]),
        ("u64 >= 18446744073709551614.5", [0]),
        ("u64 < 18446744073709551616", [0, 1]),
        ("u64 > -1", [0, 1]),
        ("u64 < -1", []),
        ("u64 != -1", [0, 1]),
        ("i64 > 1.5", [0]),
        ("i64 < 1.5", [1]),
        ("i64 = 1.5", []),
        ("i64 != 1.5", [0, 1]),
        ("i64 > 1152921504606846976.5", [0]),
        ("i64 = 1152921504606846976", []),
        ("i64 IN (1.0, 7.5)", [1]),
        ("i64 NOT IN (7.5)", [0, 1]),
        ("i64 > -1e999999", [0, 1]),
        ("i64 > 1e-999999", [0, 1]),
        ("i8 <= -128", [0]),
        ("i8 < -128.5", []),
        ("i8 > -128.5", [0, 1]),
        ("i8 >= 127.5", []),
        ("f16 > 1", [1]),
        ("f16 >= 1.0001", [1]),
        ("f64 = 1152921504606846976", [0]),
        ("f64 = 0.1", [1]),
        ("f64 IN (0.1, 3)", [1]),
        ("f32 = 0.1", [0]),
        ("f32 <= 0.1", [0]),
        ("f32 IN (0.1, 7)", [0]),
        ("f32 IS NULL", [1, 2]),
        ("NOT f32 > 5", [0]),
        ("dec IN (1.5, 1.501, 1e300)", [0]),
        ("dec NOT IN (1.501)", [0, 1]),
        ("wide > -1e36", [0, 1]),
        ("wide > -1e400", [0, 1]),
        ("wide < -1e36", []),
        ("i64 IN (1.5, 1e300)", []),
        ("few = 0.1", [0]),
        ("few IS NOT NULL", [0]),
        ("few NOT IN (7)", [0]),
        ("dec > 1.499", [0]),
        ("dec = 1.500", [0]),
        ("dec = 1.501", []),
        ("dec < -0.099", [1]),
        ("dec < 1e300", [0, 1]),
        ('tm > "01:02:00"', [1]),
        ('tm IN ("01:02", "01:03")', [0]),
        ('seconds <= "01:02:03"', [0, 1]),
        ("dur IS NOT NULL", [0, 1]),
        ('zoned > "2024-01-03"', [1]),
        ('zoned = "2024-01-03 00:00:01"', [1]),
        ('zoned = "2024-01-03 01:00:00+01:00"', [0]),
        ('plain = "2024-01-03"', [0]),
        ('view = "a"', [0]),
        ('view IN ("a", "c")', [0]),
        ('view NOT IN ("a", "c")', [1]),
        ('zoned IN ("2024-01-03 00:00:01", "2025-01-01")', [1]),
        ('nanos IN ("2024-01-03", "2024-01-04 00:00:00.000000001")', [1]),
    ],
)
def test_every_type_is_compared_without_rounding(text, rows):
    assert np.flatnonzero(parse_filter(text).evaluate(pa.table(TYPED))).tolist() == rows


@pytest.mark.parametrize(
    ("text", "character", "says"),
    [
        ('tm > "1"', 6, "is no time"),
        ('seconds > "01:02:00.5"', 11, "is no time"),
        ("tm > 5", 6, "tm holds times"),
        ('dur > "1"', 1, "dur holds values of type duration.*cannot be compared"),
        ("interval = 1", 1, "cannot be compared"),
        ("coarse > 1", 1, "cannot be compared"),
        ('zoned > "tomorrow"', 9, "is no date"),
        ('plain > "2024-01-03T00:00:00Z"', 9, r"is no date of type timestamp\[s\]"),
        ("i64 > 1e9999999999999999999999", 7, "too long a number"),
    ],
)
def test_mistakes_of_type_point_at_the_character(text, character, says):
    with pytest.raises(InvalidInput, match=rf"filter: at character {character}: .*{says}"):
        parse_filter(text).evaluate(pa.table(TYPED))


@pytest.mark.parametrize("literal", ["1", "1.5", '"1"', '"2024-01-03"', '"01:02"', "true"])
@pytest.mark.parametrize("name", TYPED)
def test_no_type_fails_in_another_way(name, literal):
    for text in (f"{name} = {literal}", f"{name} < {literal}", f"{name} IN ({literal})"):
        with suppress(InvalidInput):
            assert not parse_filter(text).evaluate(pa.table(TYPED))[2]


def test_depth_is_bounded():
    for text in ("(" * 5000 + "in_stock" + ")" * 5000, "not " * 5000 + "in_stock"):
        with pytest.raises(InvalidInput, match="nested"):
            parse_filter(text)
    nested = "(" * 50 + "in_stock" + ")" * 50
    assert parse_filter(nested).evaluate(TABLE).sum() == 2
    many = " OR ".join(["in_stock"] * 500)
    assert parse_filter(many).evaluate(TABLE).sum() == 2
    for one in ("stock IS NOT NULL", "stock NOT IN (1)", "NOT stock = 1"):
        assert parse_filter(" AND ".join([one] * 150)).evaluate(TABLE).sum() == 3
    words = ", ".join(f"'not not {i}'" for i in range(150))
    assert parse_filter(f"category IN ({words})").evaluate(TABLE).sum() == 0
    with pytest.raises(InvalidInput, match="nested"):
        parse_filter("NOT (NOT (" * 40 + "in_stock" + "))" * 40)


def test_messages_are_short():
    table = pa.table({f"attribute{i}": [1] for i in range(900)})
    for text in ("x" * 5000, "é" * 5000 + " = 1", f"attribute1 = '{'x' * 5000}'"):
        with pytest.raises(InvalidInput) as caught:
            parse_filter(text).evaluate(table)
        assert len(str(caught.value)) < 600


def test_long_conditions():
    rows, values = 200_000, 300
    table = pa.table({"n": np.arange(rows) % 1000, "s": pa.array(["a", "b"] * (rows // 2))})
    table = table.append_column("d", table["s"].dictionary_encode())
    numbers = ", ".join(map(str, range(values)))
    assert parse_filter(f"n IN ({numbers})").evaluate(table).sum() == rows * values // 1000
    others = " AND ".join(f"d != '{i}'" for i in range(values))
    assert parse_filter(f"d = 'a' AND {others}").evaluate(table).sum() == rows // 2


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text):
    with suppress(InvalidInput):
        mask = parse_filter(text).evaluate(TABLE)
        assert mask.dtype == np.bool_
        assert len(mask) == len(ROWS)


def kleene(tree, row):
    """What the language's description says, in Python: True, False or None."""
    kind, *parts = tree
    if kind == "compare":
        name, operator, value = parts
        have = row[name]
        return None if have is None else {"<": have < value, "=": have == value}[operator]
    if kind == "not":
        met = kleene(parts[0], row)
        return None if met is None else not met
    left, right = (kleene(part, row) for part in parts)
    if kind == "and":
        return False if False in (left, right) else None if None in (left, right) else True
    return True if True in (left, right) else None if None in (left, right) else False


def write(tree):
    kind, *parts = tree
    if kind == "compare":
        return "{} {} {}".format(*parts)
    if kind == "not":
        return f"NOT ({write(parts[0])})"
    return f"({write(parts[0])}) {kind.upper()} ({write(parts[1])})"


leaves = st.tuples(
    st.just("compare"),
    st.sampled_from(["price", "stock"]),
    st.sampled_from(["<", "="]),
    st.sampled_from([0, 3, 5.0, 49.5, 50]),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    ),
    max_leaves=8,
)


@given(trees)
def test_logic_is_that_of_sql(tree):
    expected = [kleene(tree, row) is True for row in ROWS]
    assert parse_filter(write(tree)).evaluate(TABLE).tolist() == expected


def test_an_empty_catalog():
    assert parse_filter("price < 5").evaluate(TABLE.slice(0, 0)).tolist() == []

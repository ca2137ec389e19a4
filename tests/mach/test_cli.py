"""``mach``: what it prints of what users wrote, and how it names their mistakes."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from rich.console import Console
from typer.testing import CliRunner

from aggregator.replies import plain
from mach.bundle.catalog import Catalog
from mach.cli.app import build_app, main
from mach.cli.search import Found, _listens, found_table

ODD = r"[red]r2[/x] sku:car:1 \[b]"


def mach(*arguments):
    return CliRunner().invoke(build_app(), [*map(str, arguments)], catch_exceptions=False).stdout


def test_ids_and_attributes_are_printed_as_they_are():
    products = [{"product_id": ODD, "score": -1.0, "attributes": {"title": ODD, "[b]": ODD}}]
    wide = Console(width=300)
    with wide.capture() as printed:
        wide.print(found_table(Found(products, 4, 4, {}, "v1")))
    assert printed.get().count(ODD) == 3
    assert "[b]=" in printed.get()


def test_json_says_which_repetitions_are_missing_and_why():
    found = Found([], 3, 4, {2: "unavailable"}, "v1").to_json()
    assert found["coverage"] == {"answered": 3, "total": 4, "missing": {"2": "unavailable"}}


@pytest.mark.parametrize("kind", ["merge", "fleet"])
def test_a_benchmark_looks_where_it_writes_first(kind, tmp_path, capsys):
    arguments = ["--address", "127.0.0.1:1"] if kind == "fleet" else []
    with pytest.raises(SystemExit) as caught:
        main(["bench", kind, *arguments, "--json", str(tmp_path)])
    assert caught.value.code == 2
    assert "is a directory" in capsys.readouterr().err.replace("\n", " ")


def test_paths_are_printed_as_they_are(tiny_bundle, tmp_path):
    path = tmp_path / ODD
    shutil.copytree(tiny_bundle.path, path)
    printed = mach("inspect", path)  # folded at the width of the terminal
    assert "".join(ODD.split()) in "".join(printed.split())


def test_an_error_is_printed_as_it_is(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(tmp_path / ODD)])
    assert caught.value.code == 2
    assert ODD in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "/tmp/b\udcff/bundle"],
        ["search", "q", "--bundle", "/tmp/b\udcff"],
        ["search", "q", "--address", "\udcff:1"],
        ["bundle", "fetch", "http://[/x", "/tmp/nowhere"],
    ],
)
def test_odd_names_are_one_sentence(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.strip().startswith("error:") and "Traceback" not in said


def test_a_bundle_is_searched_as_a_fleet_prints_it(tiny_bundle, monkeypatch):
    values = {
        "day": date(2024, 1, 3),
        "at": datetime(2024, 1, 3, 14, 30, tzinfo=UTC),
        "price": Decimal("1.50"),
        "weight": float("nan"),
        "sizes": [1, float("inf")],
        "blob": b"ab",
    }
    monkeypatch.setattr(Catalog, "rows", lambda _, classes: [values] * len(classes))
    arguments = ("search", "acme drill", "-k", 1, "--bundle", tiny_bundle.path)
    (product,) = json.loads(mach(*arguments, "--json"), parse_constant=pytest.fail)["products"]
    assert product["attributes"] == {
        "day": "2024-01-03",
        "at": "2024-01-03T14:30:00+00:00",
        "price": 1.5,
        "weight": None,
        "sizes": [1, None],
        "blob": "YWI=",
    }
    assert "day=2024-01-03" in "".join(mach(*arguments).split())


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["drill", "--filter", 'category = "\udcff"'], "options.filter"),
        (["drill", "--allow", "\udcff"], "options.allowed_product_ids"),
        (["drill", "--block", "\udcff"], "options.blocked_product_ids"),
        (["drill\udcff"], "query.text"),
    ],
)
def test_what_is_no_unicode_is_named(tiny_bundle, capsys, arguments, field):
    with pytest.raises(SystemExit) as caught:
        main(["search", *arguments, "--bundle", str(tiny_bundle.path)])
    assert caught.value.code == 2
    assert f"error: {field}: is not valid Unicode" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "fleet", "--rate"],
        ["bench", "fleet", "--warm-up"],
        ["bench", "merge", "--seconds"],
        ["search", "drill", "--timeout"],
        ["token", "create", "tokens.json", "a", "--rate"],
    ],
)
def test_what_is_no_finite_number_is_refused(capsys, arguments, number):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, number])
    assert caught.value.code == 2
    assert f"Invalid value for '{arguments[-1]}'" in capsys.readouterr().err


def evaluate(bundle, rows, *arguments):
    rows.write_text("query,product_id\n" + "acme drill red,P00000\n" * 95 + ",P00000\n" * 5)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(bundle.path), str(rows), *map(str, arguments)])
    return caught.value.code


def test_evaluate_says_what_it_skipped(tiny_bundle, tmp_path, capsys):
    rows, figures = tmp_path / "rows.csv", tmp_path / "figures.json"
    assert evaluate(tiny_bundle, rows, "--json", figures) == 0
    printed = capsys.readouterr()
    assert "95 queries" in printed.out
    assert f"5 × row without a query skipped (first: {rows}, row 96)" in printed.err
    read = json.loads(figures.read_text())
    assert (read["queries"], read["rows"]) == (95, 100)
    assert read["skipped"] == {"row without a query skipped": 5}


def test_evaluate_refuses_rows_of_which_many_are_unusable(tiny_bundle, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    assert evaluate(tiny_bundle, rows, "--max-skipped", 0.04) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{rows}: 5 of 100 rows cannot be used" in printed.err


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("target", ["", "nope/file"])
def test_evaluate_looks_where_it_writes_first(tiny_bundle, tmp_path, capsys, option, target):
    assert evaluate(tiny_bundle, tmp_path / "rows.csv", option, tmp_path / target) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"error: {option}: {tmp_path / target}" in printed.err
    assert "directory" in printed.err


def test_evaluate_looks_for_what_drawing_takes_first(tiny_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rows = tmp_path / "rows.csv"
    assert evaluate(tiny_bundle, rows, "--plot", tmp_path / "dial.png") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: --plot needs matplotlib" in printed.err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "error: not enough memory: Unable to"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_ends_a_command_is_one_line(capsys, monkeypatch, raised, code, said, compiled):
    def fail(*_):
        if not compiled:
            raise raised
        try:
            raise raised
        except BaseException as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr("mach.bundle.Bundle.open", fail)
    if compiled and code != 130:
        pytest.skip("compiled code allocates nothing that large")
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "bundle"])
    assert caught.value.code == code
    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert printed.count("\n") == 1


def test_whole_numbers_that_a_double_cannot_hold_are_text():
    numbers = {"a": 2**53, "b": 2**53 + 1, "c": -(2**63), "d": [2**64], "e": True}
    assert plain(numbers) == {
        "a": float(2**53),
        "b": "9007199254740993",
        "c": "-9223372036854775808",
        "d": ["18446744073709551616"],
        "e": True,
    }


def test_a_fleet_that_answers_nothing_is_a_failure(tmp_path, free_port, capsys):
    log, figures = tmp_path / "log.csv", tmp_path / "figures.json"
    log.write_text("query,product_id\na,b\n")
    arguments = ["bench", "fleet", "--address", f"127.0.0.1:{free_port}", "--queries", str(log)]
    arguments += ["--seconds", "0.2", "--warm-up", "0", "--json", str(figures)]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    assert "error: no query was answered (" in capsys.readouterr().err
    assert json.loads(figures.read_text())["queries"] == 0


def test_a_fleet_that_answers_unavailable_is_told_from_none(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert not _listens(f"127.0.0.1:{port}")
        assert not _listens(f"dns:///127.0.0.1:{port}")
        server.listen()
        assert _listens(f"127.0.0.1:{port}")
        assert _listens(f"dns:///127.0.0.1:{port}")
    path = tmp_path / "fleet"
    assert not _listens(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert _listens(f"unix:{path}")

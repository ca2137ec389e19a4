"""``mach``: what it prints of what users wrote, and how it names their mistakes."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mach.bundle.catalog import Catalog
from mach.cli.app import build_app, main
from mach.cli.search import Found, found_table

ODD = r"[red]r2[/x] sku:car:1 \[b]"


def mach(*arguments):
    return CliRunner().invoke(build_app(), [*map(str, arguments)], catch_exceptions=False).stdout


def test_ids_and_attributes_are_printed_as_they_are():
    products = [{"product_id": ODD, "score": -1.0, "attributes": {"title": ODD, "[b]": ODD}}]
    wide = Console(width=300)
    with wide.capture() as printed:
        wide.print(found_table(Found(products, 4, 4, "v1")))
    assert printed.get().count(ODD) == 3
    assert "[b]=" in printed.get()


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

"""``mach``: what it prints of what users wrote, and how it names their mistakes."""

from __future__ import annotations

import shutil

import pytest
from rich.console import Console
from typer.testing import CliRunner

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

"""``mach bundle push`` and ``mach bundle fetch``."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mach.bundle import Bundle
from mach.cli import bundle as command
from mach.errors import BundleError, InvalidInput


@pytest.fixture
def mach():
    """Runs ``mach`` with arguments and returns standard output; errors come through."""
    app = typer.Typer()
    command.register(app)

    def run(*arguments):
        return (
            CliRunner()
            .invoke(app, ["bundle", *map(str, arguments)], catch_exceptions=False)
            .stdout.rstrip("\n")
        )

    return run


def test_push_and_fetch_print_where_the_bundle_is(mach, tiny_bundle, tmp_path):
    location = mach("push", tiny_bundle.path, tmp_path / "store")
    assert location == str(tmp_path / "store" / tiny_bundle.version)
    path = mach(
        *("fetch", location, tmp_path / "cache", "--version", tiny_bundle.version),
        *("--expect-repetitions", 4, "--link", tmp_path / "run" / "current"),
    )
    assert path == str(tmp_path / "cache" / tiny_bundle.version)
    Bundle.open(tmp_path / "run" / "current").verify()


def test_fetch_for_a_shard(mach, tiny_bundle, tmp_path):
    path = mach(
        *("fetch", tiny_bundle.path, tmp_path, "--role", "shard", "--repetition", "0,2"),
    )
    assert {file.name for file in Path(path).iterdir()} == {
        "manifest.json",
        "features.arrow",
        "repetition-000.onnx",
        "repetition-002.onnx",
    }


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--expect-repetitions", 5), BundleError, "has 4 repetitions, not 5"),
        (("--version", "0" * 64), BundleError, "not 0000"),
        (("--role", "shard", "--repetition", "x"), InvalidInput, "'x' is not a list such as 0,1,2"),
        (("--role", "shard", "--repetition", "4"), InvalidInput, "4 is not in the bundle"),
    ],
)
def test_a_mistake_is_named(mach, tiny_bundle, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        mach("fetch", tiny_bundle.path, tmp_path, *arguments)

"""The chart as Helm renders it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "k8s" / "chart"
VALUES = sorted(path.stem for path in (Path(__file__).parent / "values").glob("*.yaml"))

Object = dict[str, Any]


def values_of(name: str) -> dict[str, Any]:
    """A value set of these tests."""
    path = Path(__file__).parent / "values" / f"{name}.yaml"
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


def render(values: dict[str, Any], chart: Path = CHART) -> list[Object]:
    """Every object of a release named ``demo`` in the namespace ``prod``."""
    with helm_python.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        files = loaded.render(values, name="demo", namespace="prod")
    return [
        document
        for name, text in sorted(files.items())
        if not name.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]


@cache
def rendered(name: str) -> list[Object]:
    """The objects of a value set; copy them before you change them."""
    return render(values_of(name))

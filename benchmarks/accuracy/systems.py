"""The systems compared and how each is started, from ``settings.toml``."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.datasets import Prepared
from benchmarks.accuracy.environments import Environments

__all__ = ["SETTINGS", "System", "load_systems", "train_options"]

SETTINGS = Path(__file__).parent / "settings.toml"
WORKERS = Path(__file__).parent / "workers"
OURS = "ours"

Command = list[str | Path]


def train_options(options: Mapping[str, Any]) -> list[str]:
    """Command-line options from a table: ``{"min_count": 2, "catalog_titles": true}``."""
    arguments = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments


@dataclass(frozen=True)
class System:
    """One row of the table."""

    key: str
    name: str
    about: str
    environment: str | None
    """Its virtual environment; ours is the one that runs this."""
    worker: Path
    datasets: Mapping[str, Mapping[str, Any]]

    def settings(self, dataset: str) -> dict[str, Any]:
        """Its settings for a data set.

        Raises:
            KeyError: if it has none.
        """
        return dict(self.datasets[dataset])

    def python(self, environments: Environments) -> Path:
        """The interpreter, its environment made if need be."""
        if self.environment is None:
            return Path(sys.executable)
        return environments.python(self.environment)

    def train_command(self, python: Path, data: Prepared, model: Path, threads: int) -> Command:
        """What trains it on ``data`` and leaves its model in the folder ``model``."""
        settings = self.settings(data.facts.name)
        if self.key == OURS:
            mach = python.with_name("mach")
            options = {"workers": threads} | settings["train"]
            files: Command = [data.train, "--catalog", data.catalog, "--out", model / "bundle"]
            return [mach, "train", *files, *train_options(options)]
        return [*self._worker("train", python, data, model), "--threads", str(threads)]

    def predict_command(
        self, python: Path, data: Prepared, model: Path, depth: int, out: Path
    ) -> Command:
        """What writes the ranked classes and the serving times to ``out``."""
        command = self._worker("predict", python, data, model)
        return [*command, "--depth", str(depth), "--out", out]

    def _worker(self, part: str, python: Path, data: Prepared, model: Path) -> Command:
        settings = self.settings(data.facts.name) | {"data": str(data.folder)}
        command: Command = [python, self.worker, part, "--data", data.folder, "--model", model]
        return [*command, "--settings", json.dumps(settings)]


def load_systems(path: Path = SETTINGS) -> dict[str, System]:
    """The systems of a settings file, in its order."""
    tables = tomllib.loads(path.read_text())
    return {
        key: System(
            key=key,
            name=table["name"],
            about=table["about"],
            environment=table.get("environment"),
            worker=(path.parent / table["worker"]).resolve(),
            datasets=table.get("on", {}),
        )
        for key, table in tables.items()
    }

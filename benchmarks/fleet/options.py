"""What every script here can be told, and what it works with."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from mach.bundle import Bundle
from mach.errors import InvalidInput
from mach.fleet.process import server_environment
from trainer.interactions import read_queries

__all__ = ["Setup", "add_options", "run_as_servers_do", "say", "setup_from"]

ROOT = Path(__file__).resolve().parents[2]
_MOST_QUERIES = 20_000


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Setup:
    """What is measured, and for how long.

    Attributes:
        path: the bundle's directory.
        queries: interactions whose queries are sent; the catalog's titles where None.
        rounds: how often each thing is measured; they alternate, and medians are reported.
        seconds: length of one measurement of load.
        results: where tables and figures are written.
        page: the documentation whose tables are brought up to date.
        environments: where peers' virtual environments are made.
    """

    path: Path
    queries: Path | None
    rounds: int
    seconds: float
    results: Path
    page: Path
    environments: Path

    @cached_property
    def bundle(self) -> Bundle:
        """The bundle."""
        return Bundle.open(self.path)

    @cached_property
    def known(self) -> list[tuple[str, list[str]]]:
        """Queries in a fixed random order, each with its true products, if these are known."""
        if self.queries is not None:
            pairs = list(islice(read_queries([self.queries]), _MOST_QUERIES))
        else:
            catalog = self.bundle.catalog
            if "title" not in catalog.attributes:
                raise InvalidInput("--queries", "is needed: the catalog has no titles")
            titles = catalog.table["title"].slice(0, _MOST_QUERIES).to_pylist()
            ids = catalog.product_ids(range(len(titles)))
            pairs = [(title, [id_]) for title, id_ in zip(titles, ids, strict=True) if title]
        order = np.random.default_rng(0).permutation(len(pairs))
        return [pairs[i] for i in order]

    @cached_property
    def texts(self) -> list[str]:
        """The queries alone."""
        return [text for text, _ in self.known]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The flags of every script."""
    parser.add_argument("--bundle", type=Path, required=True, help="directory of the bundle")
    parser.add_argument("--queries", type=Path,
                        help="interactions whose queries are sent; default: titles")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (default 3)")
    parser.add_argument("--seconds", type=float, default=5.0,
                        help="length of one measurement (default 5)")  # fmt: skip
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/serving-benchmarks.md",
                        help="documentation whose tables are brought up to date")  # fmt: skip
    parser.add_argument("--environments", type=Path, default=ROOT / ".venvs")


def run_as_servers_do() -> None:
    """Start this process over with the environment of the servers, if it has another.

    What is measured in this process is compared with them.
    """
    environment = server_environment()
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def setup_from(options: argparse.Namespace) -> Setup:
    """What the flags say.

    Raises:
        InvalidInput: if a number makes no sense.
    """
    if options.rounds < 1 or options.seconds <= 0:
        raise InvalidInput("--rounds", "and --seconds must be positive")
    return Setup(
        path=options.bundle.resolve(),
        queries=options.queries and options.queries.resolve(),
        rounds=options.rounds,
        seconds=options.seconds,
        results=options.results.resolve(),
        page=options.page.resolve(),
        environments=options.environments.resolve(),
    )


def load_average() -> float:
    """Processes that wanted a CPU in the last minute: shows whether the machine was quiet."""
    return os.getloadavg()[0]


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(np.median(values))

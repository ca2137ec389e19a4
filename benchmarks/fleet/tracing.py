"""What tracing costs: ``python -m benchmarks.fleet.tracing --baseline CHECKOUT``.

Fleets that differ in nothing but the environment run beside each other and are loaded in turn:
tracing off, on with nothing sampled, with one call of a hundred, with every call. ``--baseline``
adds one that runs another checkout of this repository, such as the commit before a change.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, chdir, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from benchmarks.fleet.load import CONCURRENCY, closed_loop, cpu_of, metric_sum
from benchmarks.fleet.options import ROOT, Setup, add_options, median, say, setup_from
from benchmarks.fleet.report import Report, Table, measure
from mach.errors import MachError
from mach.fleet import LocalFleet

TITLE = "CPU of tracing, off and on"
_BASELINE, _OFF = "before", "off"
_SAMPLERS = {
    _BASELINE: None,
    _OFF: None,
    "on, none sampled": ("always_off", ""),
    "on, 1 % sampled": ("parentbased_traceidratio", "0.01"),
    "on, all sampled": ("always_on", ""),
}
_LOADS = {"1 in flight": 1, f"{CONCURRENCY} in flight": CONCURRENCY}


@contextmanager
def sink() -> Iterator[str]:
    """The endpoint of a collector that throws everything away."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(4), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables for the processes started within the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def start(setup: Setup, endpoint: str, name: str, checkout: Path) -> LocalFleet:
    """A fleet of one variant; servers import from the directory they are started in."""
    variables = {}
    if (sampler := _SAMPLERS[name]) is not None:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": sampler[0],
            "OTEL_TRACES_SAMPLER_ARG": sampler[1],
        }
    fleet = LocalFleet(setup.bundle)
    with chdir(checkout), environment(variables):
        fleet.start(timeout=180)
    return fleet


def one(setup: Setup, fleet: LocalFleet, concurrency: int) -> dict[str, float]:
    """CPU milliseconds a query of the aggregator and of all shards, and latency."""
    assert fleet.aggregator is not None
    meters = {"aggregator": cpu_of([fleet.aggregator]), "shards": cpu_of(fleet.shards)}
    before = {part: meter.total_seconds() for part, meter in meters.items()}
    queries = metric_sum(fleet.aggregator, "mach_aggregator_batch_size_sum")
    found = closed_loop(fleet.address, setup.texts, setup.seconds, concurrency=concurrency)
    queries = metric_sum(fleet.aggregator, "mach_aggregator_batch_size_sum") - queries
    cpu = {
        f"{part}_cpu_us": (meter.total_seconds() - before[part]) / queries * 1e6
        for part, meter in meters.items()
    }
    return {**cpu, "p50_us": found.p50_ms * 1e3, "errors": found.errors}


def run(setup: Setup, *, baseline: Path | None) -> Report:
    """Load the fleets in turn, in another order each round."""
    report = Report()
    variants = [name for name in _SAMPLERS if name != _BASELINE or baseline is not None]
    with ExitStack() as stack:
        endpoint = stack.enter_context(sink())
        fleets = {}
        for name in variants:
            checkout = baseline if name == _BASELINE and baseline is not None else ROOT
            fleets[name] = start(setup, endpoint, name, checkout)
            stack.callback(fleets[name].stop)
        for number in range(setup.rounds):
            turn = number % len(variants)
            for name in (*variants[turn:], *variants[:turn]):
                for load, concurrency in _LOADS.items():
                    got = one(setup, fleets[name], concurrency)
                    report.rounds.append({"round": number, "variant": name, "load": load, **got})
            say(f"  round {number + 1} of {setup.rounds}")

    def of(variant: str, load: str, figure: str) -> float:
        return median(
            [r[figure] for r in report.rounds if (r["variant"], r["load"]) == (variant, load)]
        )

    figures = ("aggregator_cpu_us", "shards_cpu_us", "p50_us")
    report.figures = {
        f"{variant}, {load}": {figure: of(variant, load, figure) for figure in figures}
        for variant in variants
        for load in _LOADS
    }
    report.tables.append(
        Table(
            ["tracing", *(f"{load}: {what}" for load in _LOADS
                          for what in ("aggregator", "shards", "p50"))],
            [
                [variant, *(f"{of(variant, load, figure):.0f}"
                            for load in _LOADS for figure in figures)]
                for variant in variants
            ],
        )
    )  # fmt: skip
    report.notes.append(
        "CPU of the aggregator and of all shards, and latency, in microseconds a query. "
        "Servers, load and collector share the CPUs."
    )
    return report


def main() -> int:
    """0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet.tracing", description=TITLE)
    add_options(parser)
    parser.add_argument("--baseline", type=Path, help="another checkout, measured beside this one")
    options = parser.parse_args()
    baseline = options.baseline and options.baseline.resolve()
    try:
        measure("tracing", TITLE, partial(run, baseline=baseline), setup_from(options))
    except MachError as error:
        say(f"tracing: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

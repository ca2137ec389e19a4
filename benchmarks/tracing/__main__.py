"""``python -m benchmarks.tracing BUNDLE``: CPU of tracing off, on and sampled.

A process for each way, which differ in nothing but the environment, each with a client, an
aggregator and a shard for every repetition. They take turns in short slices, so that whatever
else the machine does falls on all of them. ``--baseline`` adds a process that runs another
checkout of this repository, such as the commit before tracing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.common import describe_machine, describe_run
from benchmarks.tracing.bare import interceptor_us
from mach.bundle import Bundle
from mach.errors import MachError

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
#: Sampler and its argument; None for no endpoint.
WAYS = {
    "before": None,
    "off": None,
    "on, none sampled": ("always_off", ""),
    "on, 1 % sampled": ("traceidratio", "0.01"),
    "on, all sampled": ("always_on", ""),
}
#: Calls in flight, and calls in a slice.
LOADS = {1: 60, 32: 160}


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
def worker(bundle: Path, checkout: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A process that measures when it is told to."""
    process = subprocess.Popen(
        [sys.executable, WORKER, bundle],
        env={**os.environ, "PYTHONPATH": str(checkout), **variables},
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen, in_flight: int, calls: int) -> float:
    """CPU microseconds a call."""
    process.stdin.write(f"{in_flight} {calls}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        sys.exit("a worker ended; its words are above")
    return float(line) * 1e6


def run(bundle: Path, baseline: Path | None, rounds: int) -> dict[str, dict[int, list[float]]]:
    """All slices, by way and calls in flight."""
    ways = [name for name in WAYS if name != "before" or baseline is not None]
    with ExitStack() as stack:
        endpoint = stack.enter_context(sink())
        processes = {}
        for name in ways:
            variables = {}
            if (sampler := WAYS[name]) is not None:
                variables = {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                    "OTEL_TRACES_SAMPLER": sampler[0],
                    "OTEL_TRACES_SAMPLER_ARG": sampler[1],
                }
            checkout = baseline if name == "before" and baseline is not None else ROOT
            processes[name] = stack.enter_context(worker(bundle, checkout, variables))
        for process in processes.values():  # warm
            for load, calls in LOADS.items():
                ask(process, load, 2 * calls)
        found: dict[str, dict[int, list[float]]] = {
            way: {load: [] for load in LOADS} for way in ways
        }
        for number in range(rounds):
            turn = number % len(ways)
            for way in (*ways[turn:], *ways[:turn]):
                for load, calls in LOADS.items():
                    found[way][load].append(ask(processes[way], load, calls))
            print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, dict[int, list[float]]], machine: dict, when: dict, rounds: int) -> str:
    """Markdown."""
    head = [f"{load} in flight" for load in LOADS]
    lines = [f"| tracing | {' | '.join(head)} |", "| --- | ---: | ---: |"]
    for way, loads in found.items():
        figures = " | ".join(f"{np.quantile(slices, 0.25):.0f}" for slices in loads.values())
        lines.append(f"| {way} | {figures} |")
    return "\n".join(
        [
            *lines,
            "",
            "CPU microseconds a search, of client, aggregator and shards together; the lower "
            f"quartile of {rounds} slices in turn.",
            f"Measured {when['date']} at {when['commit']} on {machine['cpu']}, "
            f"{machine['cpus']} CPUs.",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--baseline", type=Path, help="another checkout, measured beside this one")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, help="write every slice there")
    options = parser.parse_args()
    try:
        Bundle.open(options.bundle)
    except MachError as error:
        parser.error(str(error))
    baseline = options.baseline and options.baseline.resolve()
    found = run(options.bundle.resolve(), baseline, options.rounds)
    machine, when = describe_machine(), describe_run()
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, **when, "slices": found}) + "\n")
    print(table(found, machine, when, options.rounds))
    print(f"Off, a call's request id and the look whether it is traced: {interceptor_us():.1f} µs.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Load on a running fleet, and what its processes cost and counted meanwhile."""

from __future__ import annotations

import asyncio
import gc
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.fleet.options import Setup
from mach.fleet import LocalFleet, ServerProcess
from mach.loadtest import LoadPlan, LoadReport, MetricsCpu, Outcomes, run_load

__all__ = ["CONCURRENCY", "closed_loop", "cpu_of", "metric_sum", "open_loop", "running_fleet"]

#: Requests in flight where a fleet is meant to be busy.
CONCURRENCY = 64
_K = 10


@contextmanager
def running_fleet(
    setup: Setup,
    *,
    shard_arguments: Sequence[str] = (),
    aggregator_arguments: Sequence[str] = (),
    admin: bool = False,
    on_event: Callable[[str], None] = lambda _: None,
) -> Iterator[LocalFleet]:
    """A fleet of one process a repetition and an aggregator."""
    fleet = LocalFleet(
        setup.bundle,
        shard_arguments=shard_arguments,
        aggregator_arguments=aggregator_arguments,
        admin=admin,
        on_event=on_event,
    )
    fleet.start(timeout=180)
    try:
        yield fleet
    finally:
        fleet.stop()


def cpu_of(servers: Iterable[ServerProcess]) -> MetricsCpu:
    """CPU seconds of some processes."""
    return MetricsCpu([f"http://{server.metrics}/metrics" for server in servers])


def metric_sum(server: ServerProcess, name: str) -> float:
    """A metric of a process, summed over its labels."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    )


def _run(address: str, plan: LoadPlan, cpu: MetricsCpu | None, **more: Any) -> LoadReport:
    # The generator shares the machine with what it measures: no collection in the middle of it.
    gc.collect()
    gc.freeze()
    try:
        return asyncio.run(run_load(address, plan, cpu=cpu, **more))
    finally:
        gc.unfreeze()


def closed_loop(
    address: str,
    texts: Sequence[str],
    seconds: float,
    *,
    concurrency: int = CONCURRENCY,
    cpu: MetricsCpu | None = None,
    timeout: float = 10.0,
) -> LoadReport:
    """A fixed number of requests in flight, after a second to warm up."""
    plan = LoadPlan(
        texts=texts,
        concurrency=concurrency,
        seconds=seconds,
        warm_up_seconds=1.0,
        k=_K,
        timeout=timeout,
    )
    return _run(address, plan, cpu)


def open_loop(
    address: str,
    texts: Sequence[str],
    seconds: float,
    rate: float,
    *,
    warm_up: float = 1.0,
    timeout: float = 1.0,
    on_progress: Callable[[float, Outcomes], None] | None = None,
) -> LoadReport:
    """A fixed number of requests a second, whatever becomes of them."""
    plan = LoadPlan(
        texts=texts, rate=rate, seconds=seconds, warm_up_seconds=warm_up, k=_K, timeout=timeout
    )
    return _run(address, plan, None, on_progress=on_progress)

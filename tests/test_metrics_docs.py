"""``docs/metrics.md`` lists what the servers show, no more and no less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram

from aggregator.metrics import AggregatorMetrics
from mach.bundle import Bundle
from mach.serving import BundleHost
from mach.serving.guard import new_calls_counter
from mach.serving.metrics import ServerMetrics
from mach.serving.security import SecurityMetrics
from shard_server.metrics import ShardMetrics

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"


def _shard(registry: CollectorRegistry) -> None:
    ShardMetrics(registry)
    BundleHost(Bundle.open, lambda bundle: bundle, registry, root=Path())


def _both(registry: CollectorRegistry) -> None:
    ServerMetrics(registry)
    SecurityMetrics(registry)
    new_calls_counter(registry)


def _rows(register: Callable[[CollectorRegistry], object]) -> list[str]:
    registry = CollectorRegistry()
    register(registry)
    rows = []
    for collector in registry._collector_to_names:
        (family,) = collector.describe()
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(collector._labelnames)
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return rows


def tables() -> dict[str, list[str]]:
    """The rows of each section."""
    return {
        "Both servers": _rows(_both),
        "Shard server": _rows(_shard),
        "Aggregator": _rows(AggregatorMetrics),
    }


def test_the_tables_are_what_the_servers_show():
    documented: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = documented.setdefault(line.removeprefix("## "), [])
        elif line.startswith("| `"):
            section.append(line)
    assert documented == tables()


def test_names_follow_the_conventions():
    names = [row.split("`")[1] for rows in tables().values() for row in rows]
    assert len(names) == len(set(names))
    for rows in tables().values():
        for row in rows:
            _, name, kind, _, meaning, _ = (part.strip(" `") for part in row.split("|"))
            assert name.startswith(("mach_", "grpc_server_"))
            assert (kind == "counter") == name.endswith("_total")
            assert meaning.endswith(".")


def test_histograms_of_seconds_begin_at_half_a_millisecond_or_below():
    found = []
    for register in (ServerMetrics, _shard, AggregatorMetrics):
        registry = CollectorRegistry()
        register(registry)
        for collector in registry._collector_to_names:
            if isinstance(collector, Histogram) and collector._name.endswith("_seconds"):
                assert collector._upper_bounds[0] <= 0.0005, collector._name
                found.append(collector._name)
    assert len(found) >= 7

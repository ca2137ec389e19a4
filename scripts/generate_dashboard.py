"""Write the Grafana dashboard, k8s/monitoring/dashboard.json; ``--check`` compares instead.

A dashboard is a thousand lines of JSON of which a hundred say something: those are here.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent.parent / "k8s" / "monitoring" / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

#: The fleet chosen, and its searches.
F = 'namespace=~"$namespace",mach_fleet_bundle=~"$bundle"'
S = f'{F},grpc_service="mach.v1.SearchService",grpc_method=~"Search|SearchBatch"'
BAD = (
    "UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|FAILED_PRECONDITION"
    "|INTERNAL|UNKNOWN|DATA_LOSS|ABORTED"
)
R = "[$__rate_interval]"

Query = tuple[str, str]
Panel = dict[str, Any]


def quantile(q: float, metric: str, labels: str = F, by: str = "") -> str:
    """A quantile of a histogram, for each value of the labels ``by``."""
    names = ", ".join(filter(None, [by, "le"]))
    return f"histogram_quantile({q}, sum by ({names}) (rate({metric}_bucket{{{labels}}}{R})))"


def mean(metric: str, by: str = "") -> str:
    """The mean of what a histogram observed."""
    over = f"sum by ({by}) " if by else "sum"
    return f"{over}(rate({metric}_sum{{{F}}}{R})) / {over}(rate({metric}_count{{{F}}}{R}))"


def quantiles(metric: str, labels: str = F) -> list[Query]:
    """Median, 95th and 99th percentile."""
    return [(quantile(q, metric, labels), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)]


def panel(
    title: str,
    text: str,
    queries: Sequence[Query],
    *,
    unit: str = "short",
    kind: str = "timeseries",
    width: int = 8,
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),),
    most: float | None = None,
) -> Panel:
    """One panel; its place is chosen by :func:`layout`."""
    defaults: dict[str, Any] = {
        "unit": unit,
        "min": 0,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in steps],
        },
    }
    if most is not None:
        defaults["max"] = most
    options: dict[str, Any] = {
        "timeseries": {
            "legend": {
                "displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": [],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background", "graphMode": "area", "textMode": "auto",
            "justifyMode": "auto", "orientation": "auto",
        },
        "status-history": {
            "showValue": "never", "rowHeight": 0.9, "colWidth": 1,
            "legend": {
                "displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": [],
            },
            "tooltip": {"mode": "single", "sort": "none"},
        },
    }[kind]  # fmt: skip
    if kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 10, "showPoints": "never", "spanNulls": False}
    if kind != "timeseries":
        defaults["color"] = {"mode": "thresholds"}
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": SOURCE,
        "gridPos": {"h": 4 if kind == "stat" else 8, "w": width, "x": 0, "y": 0},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "expr": expression,
                "legendFormat": legend,
                "datasource": SOURCE,
                "range": True,
            }
            for index, (expression, legend) in enumerate(queries)
        ],
    }


def rows() -> Iterator[tuple[str, list[Panel]]]:
    """Titles and panels."""
    errors = f'sum(rate(grpc_server_handled_total{{{S},grpc_code=~"{BAD}"}}{R})) or vector(0)'
    handled = f"sum(rate(grpc_server_handled_total{{{S}}}{R}))"
    coverage = mean("mach_aggregator_coverage_ratio")
    latency = "grpc_server_handling_seconds"
    red = "red"
    yield "Overview", [
        panel("Searches", "Calls a second.", [(handled, "")], unit="reqps", kind="stat", width=4),
        panel(
            "Failed", "Share of searches that fail, callers' mistakes not counted.",
            [(f"({errors}) / {handled}", "")], unit="percentunit", kind="stat", width=4,
            steps=((None, "green"), (0.001, "orange"), (0.01, red)),
        ),
        panel(
            "Latency, p99", "As the aggregator sees it.", [(quantile(0.99, latency, S), "")],
            unit="s", kind="stat", width=4, steps=((None, "green"), (0.05, "orange"), (0.1, red)),
        ),
        panel(
            "Coverage", "Share of the repetitions that answers rest on.", [(coverage, "")],
            unit="percentunit", kind="stat", width=4, most=1,
            steps=((None, red), (0.9, "orange"), (0.95, "green")),
        ),
        panel(
            "Repetitions without a shard", "As the aggregator that sees least sees it.",
            [(f"max(mach_aggregator_repetitions{{{F}}} - mach_aggregator_repetitions_ready{{{F}}})",
              "")],
            kind="stat", width=4, steps=((None, "green"), (1, red)),
        ),
        panel(
            "Bundle versions active", "One for each fleet; more while it is exchanged.",
            [(f'count(group by (bundle_version) (mach_shard_info{{{F},state="active"}}))', "")],
            kind="stat", width=4, steps=((None, "green"), (2, "orange")),
        ),
        panel(
            "Searches by status", "Calls a second, by gRPC status code.",
            [(f"sum by (grpc_code) (rate(grpc_server_handled_total{{{S}}}{R}))", "{{grpc_code}}")],
            unit="reqps",
        ),
        panel("Latency", "As the aggregator sees it.", quantiles(latency, S), unit="s"),
        panel(
            "Error budget", "How many times faster than the objective allows it is being spent; "
            "over an hour. Above 14.4 somebody is paged.",
            [("mach:search_errors:ratio_rate1h / on() group_left() "
              "(1 - mach:availability:objective)", "availability, {{namespace}}"),
             ("mach:search_slow:ratio_rate1h / on() group_left() "
              "(1 - mach:latency:objective)", "latency, {{namespace}}")],
        ),
    ]  # fmt: skip
    rpc = "mach_aggregator_shard_rpc_seconds"
    yield "Repetitions", [
        panel(
            "Latency of each repetition, p95", "From a message to a shard to its answer.",
            [(quantile(0.95, rpc, F, "repetition"), "{{repetition}}")],
            unit="s", kind="status-history", width=16,
            steps=((None, "green"), (0.02, "yellow"), (0.05, "orange"), (0.1, red)),
        ),
        panel(
            "Endpoints ready", "Shard servers that hold a repetition, as the aggregators see it.",
            [(f"min by (repetition) (mach_aggregator_repetition_ready_endpoints{{{F}}})",
              "{{repetition}}")],
        ),
        panel("Coverage", "Share of the repetitions that answers rest on.", [(coverage, "mean")],
              unit="percentunit", most=1),
        panel(
            "Repetitions missing", "From answers, by reason.",
            [(f"sum by (reason) (rate(mach_aggregator_degraded_total{{{F}}}{R})) or vector(0)",
              "{{reason}}")],
            unit="cps",
        ),
        panel(
            "Messages to shards", "By outcome.",
            [(f"sum by (outcome) (rate({rpc}_count{{{F}}}{R}))", "{{outcome}}")], unit="cps",
        ),
    ]  # fmt: skip
    yield "Aggregators", [
        panel(
            "Queries", "Accepted and not answered; waiting to be sent.",
            [(f"sum(mach_aggregator_queries_in_flight{{{F}}})", "in flight"),
             (f"sum(mach_aggregator_queue_depth{{{F}}})", "waiting")],
        ),
        panel("Wait", "Before queries are sent.", quantiles("mach_aggregator_queue_wait_seconds"),
              unit="s"),
        panel(
            "Load turned away", "Calls refused, or dropped before they cost anything.",
            [(f"sum by (reason) (rate(mach_aggregator_shed_total{{{F}}}{R})) or vector(0)",
              "refused {{reason}}"),
             (f"sum by (reason) (rate(mach_aggregator_dropped_total{{{F}}}{R})) or vector(0)",
              "dropped {{reason}}")],
            unit="cps",
        ),
        panel("Fan-out", "From a batch's first message to its last answer used.",
              quantiles("mach_aggregator_fanout_seconds"), unit="s"),
        panel("Merge", "Merge, top-k and look-up of a batch.",
              quantiles("mach_aggregator_merge_seconds"), unit="s"),
        panel("Queries sent together", "Mean.", [(mean("mach_aggregator_batch_size"), "queries")]),
        panel("Products looked at", "For a query, mean.",
              [(mean("mach_aggregator_candidates"), "products")]),
        panel(
            "Second tries", "Messages sent again, and shards left out for a while.",
            [(f"sum(rate(mach_aggregator_retries_total{{{F}}}{R}))", "retries"),
             (f"sum by (outcome) (rate(mach_aggregator_hedges_total{{{F}}}{R})) or vector(0)",
              "hedges {{outcome}}"),
             (f"sum(rate(mach_aggregator_ejections_total{{{F}}}{R}))", "left out")],
            unit="cps",
        ),
        panel(
            "Processor", "Processors in use, by server.",
            [(f"sum by (component, instance) (rate(process_cpu_seconds_total{{{F}}}{R}) "
              f"* on (namespace, instance) group_left (component) mach_build_info{{{F}}})",
              "{{component}} {{instance}}")],
        ),
    ]  # fmt: skip
    yield "Shards", [
        panel("Wait in the queue, p99", "By server.",
              [(quantile(0.99, "mach_shard_queue_wait_seconds", F, "instance"), "{{instance}}")],
              unit="s"),
        panel("Queue", "Queries waiting for inference.",
              [(f"sum by (instance) (mach_shard_queue_depth{{{F}}})", "{{instance}}")]),
        panel("In flight", "Requests accepted and not yet computed.",
              [(f"sum by (instance) (mach_shard_in_flight{{{F}}})", "{{instance}}")]),
        panel("Inference, p95", "Of one batch in one repetition's model.",
              [(quantile(0.95, "mach_shard_inference_seconds", F, "repetition"),
                "{{repetition}}")], unit="s"),
        panel("Queries run together", "Mean, by server.",
              [(mean("mach_shard_batch_size", "instance"), "{{instance}}")]),
        panel(
            "Load turned away", "Requests refused, or dropped before they cost inference.",
            [(f"sum(rate(mach_shard_shed_total{{{F}}}{R}))", "refused"),
             (f"sum by (reason) (rate(mach_shard_dropped_total{{{F}}}{R}))", "{{reason}}")],
            unit="cps",
        ),
        panel("Memory", "Resident, by server.",
              [(f"sum by (component, instance) (process_resident_memory_bytes{{{F}}} "
                f"* on (namespace, instance) group_left (component) mach_build_info{{{F}}})",
                "{{component}} {{instance}}")], unit="bytes"),
        panel(
            "Servers by provider", "Where inference runs.",
            [(f'count by (provider) (mach_shard_info{{{F},state="active"}})', "{{provider}}")],
        ),
        panel(
            "Provider in use", "Share of the time that a server spends in inference.",
            [(f"avg by (provider) (sum by (namespace, instance) "
              f"(rate(mach_shard_inference_seconds_sum{{{F}}}{R})) "
              f"* on (namespace, instance) group_left (provider) "
              f'mach_shard_info{{{F},state="active"}})', "{{provider}}")], unit="percentunit",
        ),
    ]  # fmt: skip
    # NVIDIA's exporter names the pod that has a GPU, and the chart's pods name their bundle.
    gpu = '{namespace=~"$namespace",pod=~".*-${bundle}-shard-.*"}'
    yield "GPUs", [
        panel(
            "GPU in use", "Share of the time that a kernel runs. From NVIDIA's DCGM exporter.",
            [(f"DCGM_FI_DEV_GPU_UTIL{gpu} / 100", "{{pod}} {{gpu}}")], unit="percentunit", most=1,
        ),
        panel(
            "GPU memory", "Share in use. From NVIDIA's DCGM exporter.",
            [(f"DCGM_FI_DEV_FB_USED{gpu} / (DCGM_FI_DEV_FB_USED{gpu} + DCGM_FI_DEV_FB_FREE{gpu})",
              "{{pod}} {{gpu}}")], unit="percentunit", most=1,
        ),
        panel("GPU power", "From NVIDIA's DCGM exporter.",
              [(f"DCGM_FI_DEV_POWER_USAGE{gpu}", "{{pod}} {{gpu}}")], unit="watt"),
    ]  # fmt: skip
    yield "Bundles", [
        panel(
            "Versions", "Servers that hold each version, and aggregators that serve it.",
            [(f"count by (bundle_version, state) (mach_shard_info{{{F}}})",
              "{{bundle_version}} {{state}} in shards"),
             (f"count by (bundle_version, state) (mach_aggregator_bundle_info{{{F}}})",
              "{{bundle_version}} {{state}} in aggregators")],
            width=12,
        ),
        panel("Loads", "In an hour, by outcome.",
              [(f"sum by (outcome) (increase(mach_bundle_loads_total{{{F}}}[1h]))",
                "{{outcome}}")], width=6),
        panel("Time to load", "Latest load of the slowest server.",
              [(f"max(mach_bundle_load_seconds{{{F}}})", "seconds")], unit="s", width=6),
    ]  # fmt: skip


def layout(parts: Iterator[tuple[str, list[Panel]]]) -> list[Panel]:
    """Panels from left to right and down, a heading above each row."""
    placed: list[Panel] = []
    y = 0
    for title, panels in parts:
        placed.append(
            {
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for item in panels:
            place = item["gridPos"]
            if x + place["w"] > 24:
                x, y = 0, y + height
                height = 0
            place.update(x=x, y=y)
            x += place["w"]
            height = max(height, place["h"])
            placed.append(item)
        y += height
    for number, item in enumerate(placed, 1):
        item["id"] = number
    return placed


def variable(name: str, label: str, query: str) -> dict[str, Any]:
    """A choice among the values of a label."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "sort": 1,
        "current": {"text": "All", "value": "$__all", "selected": True},
    }


def dashboard() -> dict[str, Any]:
    """The whole of it."""
    return {
        "uid": "mach-fleet",
        "title": "MACH fleet",
        "description": "Searches, repetitions, saturation, GPUs and bundles of a MACH fleet.",
        "tags": ["mach"],
        "timezone": "browser",
        "editable": True,
        "graphTooltip": 1,
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "type": "datasource",
                    "name": "datasource",
                    "label": "Data source",
                    "query": "prometheus",
                },
                variable("namespace", "Namespace", "label_values(mach_build_info, namespace)"),
                variable(
                    "bundle",
                    "Bundle",
                    'label_values(mach_build_info{namespace=~"$namespace"}, mach_fleet_bundle)',
                ),
            ]
        },
        "annotations": {"list": []},
        "panels": layout(rows()),
    }


def main() -> int:
    """Write or compare; 1 where the file is not current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    if not parser.parse_args().check:
        PATH.write_text(text, encoding="utf-8")
        return 0
    if not PATH.exists() or PATH.read_text(encoding="utf-8") != text:
        print(f"{PATH} is not current: run python scripts/generate_dashboard.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

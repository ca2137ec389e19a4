"""The Grafana dashboard: current, valid by Grafana's schema, and about metrics that exist."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys

import pytest

from tests.k8s.checks.programs import unknown_metrics
from tests.k8s.grafana import problems
from tests.k8s.rendering import ROOT

PATH = ROOT / "k8s" / "monitoring" / "dashboard.json"
DASHBOARD = json.loads(PATH.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_it_is_what_the_script_writes():
    script = ROOT / "scripts" / "generate_dashboard.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True)


def test_grafanas_schema_knows_all_of_it():
    assert list(problems(DASHBOARD)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(refreshes="30s"),
        lambda d: d.update(title=7),
        lambda d: d.update(editable="yes"),
        lambda d: d.update(graphTooltip=5),
        lambda d: d.update(style="purple"),
        lambda d: d["time"].update(until="now"),
        lambda d: d["panels"][1].update(titel="x"),
        lambda d: d["panels"][1]["gridPos"].update(w="8"),
        lambda d: d["panels"][1]["targets"][0].update(expression="up"),
        lambda d: d["panels"][1]["targets"][0].update(expr=1),
        lambda d: d["panels"][1]["targets"][0].update(range="yes"),
        lambda d: d["panels"][1]["options"].update(colour="background"),
        lambda d: d["panels"][1]["options"].update(colorMode="rainbow"),
        lambda d: d["panels"][1]["fieldConfig"]["defaults"].update(units="s"),
        lambda d: d["panels"][1]["fieldConfig"]["defaults"]["thresholds"].update(mode="relative"),
        lambda d: next(p for p in d["panels"] if p["type"] == "timeseries")["fieldConfig"][
            "defaults"
        ]["custom"].update(fillOpacity="10"),
        lambda d: d["templating"]["list"][1].update(multiple=True),
        lambda d: d["panels"].append("a panel"),
    ],
)
def test_the_schema_refuses(change):
    dashboard = copy.deepcopy(DASHBOARD)
    change(dashboard)
    assert list(problems(dashboard))


def test_panels_are_told_apart_and_do_not_overlap():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    titles = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert titles == ["Overview", "Repetitions", "Aggregators", "Shards", "GPUs", "Bundles"]
    assert all(panel["description"] and panel["targets"] for panel in PANELS)


def test_queries_use_metrics_that_exist_and_the_fleet_chosen():
    for query in QUERIES:
        assert unknown_metrics(query) == set(), query
        for selector in re.findall(r"\b(?:mach_|grpc_server_|process_)\w+(\{[^}]*\})?", query):
            assert selector.startswith('{namespace=~"$namespace",mach_fleet_bundle=~"$bundle"'), (
                query
            )

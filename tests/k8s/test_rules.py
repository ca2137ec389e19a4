"""Alert rules, by Prometheus's own tool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache

import pytest
import yaml

from tests.k8s.checks.programs import metric_names, unknown_metrics
from tests.k8s.rendering import ROOT, rendered

MONITORING = ROOT / "k8s" / "monitoring"
RULES = yaml.safe_load((MONITORING / "rules.yaml").read_text())
ALL = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL if "alert" in rule}
UNIT_TESTS = sorted((MONITORING / "tests").glob("*.yaml"))
RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()


def tool(name):
    """A program of Prometheus; CI has it, a contributor may not."""
    path = shutil.which(name)
    if path is None and os.environ.get("CI") != "true":
        pytest.skip(f"{name} is not installed (Debian: prometheus)")
    assert path, f"{name} is not installed"
    return path


def promtool(*arguments):
    return subprocess.run(
        [tool("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_rules_are_valid():
    done = promtool("check", "rules", MONITORING / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_keep_silent(path):
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def expectations():
    """For each alert, whether it is expected to fire and whether it is expected not to."""
    found = {}
    for path in UNIT_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                found.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    return found


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_is_tested_both_ways(alert):
    assert expectations()[alert] == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_each_alert_has_a_runbook(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{alert.lower()}"
    section = re.search(rf"^## {alert}\n\n(.+?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL)
    assert section
    assert len(section[1].split()) > 25


def test_runbooks_are_about_alerts():
    assert set(re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE)) == set(ALERTS)
    links = set(re.findall(r"\(#(\w+)\)", RUNBOOKS))
    assert links <= {alert.lower() for alert in ALERTS}


def test_rules_use_metrics_that_exist():
    recorded = {rule["record"] for rule in ALL if "record" in rule}
    for rule in ALL:
        assert unknown_metrics(rule["expr"]) == set(), rule
        assert set(re.findall(r"\bmach:[\w:]+", rule["expr"])) <= recorded
    assert metric_names()


@pytest.mark.slow  # promtool takes a quarter of a minute a time
@pytest.mark.parametrize(
    ("old", "new", "tests"),
    [
        ("mach_aggregator_repetition_ready_endpoints) == 0", "mach_shard_info) == 0", "fleet"),
        ("for: 15m", "for: 60m", "fleet"),
        ("6 * (1 - mach:availability", "60 * (1 - mach:availability", "budgets"),
    ],
)
def test_a_mistake_in_a_rule_is_seen(old, new, tests, tmp_path):
    """Alerts that can no longer fire make their tests fail."""
    text = (MONITORING / "rules.yaml").read_text()
    assert old in text
    (tmp_path / "rules.yaml").write_text(text.replace(old, new))
    (tmp_path / "tests").mkdir()
    copy = shutil.copy(MONITORING / "tests" / f"{tests}.yaml", tmp_path / "tests")
    assert promtool("test", "rules", copy).returncode == 1


def test_the_chart_ships_these_rules_with_its_own_objective():
    rules, board = (
        next(o for o in rendered("bluegreen") if o["kind"] == kind)
        for kind in ("PrometheusRule", "ConfigMap")
    )
    shipped = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    differing = [pair for pair in zip(ALL, shipped, strict=True) if pair[0] != pair[1]]
    assert [(one["expr"], other["expr"]) for one, other in differing] == [
        ("vector(0.999)", "vector(0.9995)")
    ]
    assert board["data"]["mach-fleet.json"] == (MONITORING / "dashboard.json").read_text()
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"

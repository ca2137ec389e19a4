"""The chart, rendered by Helm for several sets of values, against schemas and our own checks."""

from __future__ import annotations

import json

import helm_python
import pytest
import yaml

from tests.k8s.checks import CHECKS, Release
from tests.k8s.checks.programs import ADAPTER_RULES, metric_names, unknown_metrics
from tests.k8s.rendering import CHART, VALUES, render, rendered, values_of
from tests.k8s.schemas import VERSIONS, problems


def test_three_versions_of_kubernetes_are_known():
    assert len(VERSIONS) == 3
    assert VERSIONS[-1] >= "1.37"


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(name, version):
    assert [line for item in rendered(name) for line in problems(item, version)] == []


@pytest.mark.parametrize("name", VALUES)
def test_objects_fit_each_other_and_the_programs(name):
    release = Release(rendered(name))
    found = {check: list(function(release)) for check, function in CHECKS.items()}
    assert {check: lines for check, lines in found.items() if lines} == {}


@pytest.mark.parametrize("name", VALUES)
def test_helm_lint_is_content(name):
    report = helm_python.lint(CHART, values_of(name), strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


def test_the_default_values_are_valid_and_run_nothing():
    assert render({}) == []


def test_value_sets_reach_every_template_and_kind():
    kinds = {item["kind"] for name in VALUES for item in rendered(name)}
    assert kinds == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Job", "NetworkPolicy",
        "PodDisruptionBudget", "PrometheusRule",
        "ScaledObject", "Service", "ServiceAccount", "ServiceMonitor",
    }  # fmt: skip


def test_every_default_is_described_by_the_schema():
    """A name in values.yaml that the schema lacks would be refused; the other way round too."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def same(value, node, path):
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        if isinstance(value, dict) and node.get("additionalProperties") is False:
            assert set(value) == set(node["properties"]) - {"global"}, path
            for name, inner in value.items():
                same(inner, node["properties"][name], f"{path}.{name}")

    same(defaults, schema, "values")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shrad": {}}, "shrad"),
        ({"shard": {"autoscaling": {"mode": "magic"}}}, "mode"),
        ({"shard": {"repetitionsPerShard": 0}}, "repetitionsPerShard"),
        ({"bundles": {"blue": {"version": "latest", "repetitions": 4}}}, "version"),
        ({"bundles": {"Blue_1": {"version": "a" * 64, "repetitions": 4}}}, "Blue_1"),
        ({"store": {"url": "", "path": "../elsewhere"}}, "path"),
        ({"active": "green"}, 'active: "green" is none of the bundles blue'),
        ({"store": {"url": "", "volume": {}}}, "store: give one of url and volume"),
        (
            {"store": {"volume": {"persistentVolumeClaim": {"claimName": "x"}}}},
            "store: give one of url and volume",
        ),
        ({"shard": {"overrides": {"9": {"replicas": 2}}}}, "there is no shard 9 of bundle blue"),
        (
            {"shard": {"autoscaling": {"minReplicas": 6, "maxReplicas": 4}}},
            "minReplicas 6 is more than maxReplicas 4",
        ),
        (
            {"aggregator": {"autoscaling": {"minReplicas": 10, "maxReplicas": 8}}},
            "minReplicas 10 is more than maxReplicas 8",
        ),
        ({"shard": {"flags": {"listen": "0.0.0.0:1"}}}, "--listen is set by the chart"),
        ({"aggregator": {"flags": {"shards": "x:1"}}}, "--shards is set by the chart"),
        ({"tracing": {"endpoint": "collector:4317"}}, "endpoint"),
        ({"tracing": {"sampler": "sometimes"}}, "sampler"),
        (
            {"tls": {"clients": {"clientCaSecret": "a"}}},
            "tls.clients.clientCaSecret needs tls.clients.secret as well",
        ),
        (
            {"tls": {"shards": {"serverName": "a"}}},
            "tls.shards.serverName needs tls.shards.secret as well",
        ),
        (
            {"tls": {"shards": {"secret": "a", "clientCaSecret": "b"}}},
            "tls.shards.clientCaSecret needs tls.shards.clientSecret as well",
        ),
        ({"tls": {"clients": {"secret": "Not_A_Name"}}}, "Not_A_Name"),
        ({"tokens": {"secret": "a", "key": "../x"}}, "key"),
        ({"aggregator": {"flags": {"tokens": "/x"}}}, "--tokens is set by the chart"),
        ({"shard": {"flags": {"tls-key": "/x"}}}, "--tls-key is set by the chart"),
        ({"training": {"enabled": True}}, "training.run: give the run a name"),
        ({"training": {"enabled": True, "run": "a"}}, "training.interactions: name at least one"),
        (
            {"training": {"enabled": True, "run": "a", "interactions": ["/work/x.csv"]}},
            "training.workVolume",
        ),
    ],
)
def test_wrong_values_are_refused_by_name(change, message):
    values = merged(values_of("small"), change)
    with pytest.raises(helm_python.HelmError, match=message):
        render(values)


def merged(base, change):
    result = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


@pytest.mark.parametrize("total", [1, 8, 9, 33])
@pytest.mark.parametrize("size", [1, 4, 40])
def test_repetitions_are_divided_for_every_size(total, size):
    values = merged(
        values_of("small"),
        {
            "bundles": {"blue": {"version": "a" * 64, "repetitions": total}},
            "shard": {"repetitionsPerShard": size},
        },
    )
    release = Release(render(values))
    assert len(release.component("shard")) == -(-total // size)
    assert list(CHECKS["repetitions_are_covered_once"](release)) == []
    assert list(CHECKS["aggregators_reach_their_own_shards"](release)) == []


def test_a_second_bundle_leaves_the_first_alone_and_the_switch_moves_the_service_only():
    """Blue/green: what runs for the first bundle is the same object before and after."""
    one = values_of("small")
    two = merged(one, {"bundles": {"green": {"version": "b" * 64, "repetitions": 4}}})
    switched = merged(two, {"active": "green"})
    before, beside, after = (
        {(item["kind"], item["metadata"]["name"]): item for item in render(values)}
        for values in (one, two, switched)
    )
    assert before.items() <= beside.items()
    changed = {key for key in after if after[key] != beside[key]}
    assert after.keys() == beside.keys()
    assert changed == {("Service", "demo"), ("Service", "demo-headless")}
    assert list(CHECKS["clients_reach_one_bundle"](Release(list(after.values())))) == []


def test_another_version_under_the_same_name_changes_the_immutable_selector():
    """So the API server refuses to exchange a bundle under a fleet that serves."""
    one = values_of("small")
    two = merged(one, {"bundles": {"blue": {"version": "b" * 64, "repetitions": 4}}})
    for old, new in zip(Release(render(one)).servers, Release(render(two)).servers, strict=True):
        assert old["metadata"]["name"] == new["metadata"]["name"]
        assert old["spec"]["selector"] != new["spec"]["selector"]


@pytest.mark.parametrize("name", ["bluegreen", "everything"])
def test_no_way_out_is_an_empty_list(name):
    """Nothing is fetched over the network, and names need no server."""
    closed = {"networkPolicy": {"dnsEgress": []}, "tracing": {"endpoint": ""}}
    objects = render(merged(values_of(name), closed))
    assert [line for item in objects for line in problems(item, VERSIONS[-1])] == []
    for policy in (item for item in objects if item["kind"] == "NetworkPolicy"):
        assert "Egress" in policy["spec"]["policyTypes"]
        component = policy["metadata"]["labels"]["app.kubernetes.io/component"]
        led_to = [
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for rule in policy["spec"]["egress"]
            for peer in rule["to"]
        ]
        assert led_to == (["shard"] if component == "aggregator" else [])


@pytest.mark.parametrize(
    ("availability", "latency"), [(0.99, 0.95), (0.9995, 0.999), (0.99, 0.999)]
)
def test_objectives_stay_apart(availability, latency):
    objectives = {"availabilityObjective": availability, "latencyObjective": latency}
    values = merged(
        values_of("small"), {"monitoring": {"prometheusRule": {"enabled": True, **objectives}}}
    )
    (rules,) = (item for item in render(values) if item["kind"] == "PrometheusRule")
    found = {
        rule["record"]: rule["expr"].strip()
        for group in rules["spec"]["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    assert found["mach:availability:objective"] == f"vector({availability})"
    assert found["mach:latency:objective"] == f"vector({latency})"


def test_large_numbers_of_flags_are_written_out():
    flags = {"max-message-bytes": 67_108_864, "queue-capacity": 1_000_000}
    values = merged(values_of("small"), {"shard": {"flags": flags}})
    text = str(render(values))
    assert "--max-message-bytes=67108864" in text
    assert "--queue-capacity=1000000" in text


def test_names_that_yaml_takes_for_something_else_stay_text():
    values = values_of("small")
    bundle = next(iter(values["bundles"].values()))
    for item in render(values | {"bundles": {"on": bundle}, "active": "on"}):
        selector = item.get("spec", {}).get("selector") or {}
        for labels in (item["metadata"].get("labels", {}), selector):
            assert labels.get("mach-fleet/bundle", "on") == "on"


def test_the_adapters_rules_use_metrics_that_exist():
    rules = yaml.safe_load(ADAPTER_RULES.read_text())["rules"]
    assert rules
    for rule in rules:
        assert unknown_metrics(rule["seriesQuery"]) == set()
        assert unknown_metrics(rule["metricsQuery"]) == set()
    assert "mach_shard_queue_wait_seconds_count" in metric_names()
    assert unknown_metrics("rate(mach_shard_no_such_total[1m])") == {"mach_shard_no_such_total"}

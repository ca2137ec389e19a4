"""Every check must see the mistake it is for: in rendered objects, and in the chart itself."""

from __future__ import annotations

import copy
import shutil

import pytest

from tests.k8s.checks import CHECKS, Release
from tests.k8s.mutations import MUTATIONS
from tests.k8s.mutations.picking import pick
from tests.k8s.rendering import CHART, render, rendered, values_of
from tests.k8s.schemas import VERSIONS, problems


def objects_to(check, objects):
    """Whether a check has anything to say."""
    return next(CHECKS[check](Release(objects)), None) is not None


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_in_the_objects_is_seen(name):
    values, expected, change = MUTATIONS[name]
    objects = copy.deepcopy(rendered(values))
    assert not objects_to(expected, objects)
    change(objects)
    assert objects != rendered(values)
    assert objects_to(expected, objects)


def test_every_check_has_a_mistake_that_it_sees():
    assert {expected for _, expected, _ in MUTATIONS.values()} == set(CHECKS)


#: What is replaced in which template, and the check (or "schema") that must notice.
CHART_MUTATIONS = {
    "repetitions off by one": (
        "_names.tpl", "(add $first (sub $size 1))", "(add $first $size)",
        "repetitions_are_covered_once",
    ),
    "a shard forgotten": (
        "_names.tpl", "(add $total (sub $size 1))", "$total", "repetitions_are_covered_once",
    ),
    "Services of all bundles' shards": (
        "shards.yaml", 'selector: {{- include "mach.shardSelector" $context | nindent 4 }}',
        'selector: {{- include "mach.selector" (dict "root" $ "component" "shard") | nindent 4 }}',
        "aggregators_reach_their_own_shards",
    ),
    "a field misspelt": (
        "shards.yaml", "terminationGracePeriodSeconds", "terminationGracePeriod", "schema",
    ),
    "a type mistaken": (
        "_pods.tpl", "enableServiceLinks: false", 'enableServiceLinks: "false"', "schema",
    ),
    "a constraint written twice": (
        "_pods.tpl", "topologyKey: topology.kubernetes.io/zone",
        "topologyKey: kubernetes.io/hostname", "schema",
    ),
    "no time to drain": (
        "_pods.tpl", "{{ add .root.Values.preStopSeconds (ceil .values.drainSeconds) 10 }}", "20",
        "pods_have_time_to_finish",
    ),
    "a flag renamed": (
        "_pods.tpl", "--metrics-listen=", "--metrics=", "servers_accept_their_flags",
    ),
    "GPUs for all parts of the training": (
        "training.yaml", '"values" $values', '"values" $training',
        "gpus_go_to_programs_that_use_them",
    ),
    "probes at the port that serves": (
        "_pods.tpl", "{{- .root.Values.ports.health -}}", "{{- .root.Values.ports.grpc -}}",
        "ports_exist",
    ),
    "a whole Secret mounted": (
        "_pods.tpl", "    items:\n      {{- range .keys }}\n      - {key: {{ . }}, path: {{ . }}}\n"
        "      {{- end }}\n", "", "secrets_are_mounted_where_they_are_read",
    ),
    "no certificate to show to shards": (
        "_pods.tpl", "- --shard-certificate=/etc/mach/shard-client/tls.crt\n"
        "- --shard-key=/etc/mach/shard-client/tls.key\n", "", "both_ends_of_a_hop_agree",
    ),
    "a Service without its port's name": (
        "shards.yaml", "targetPort: metrics", "targetPort: http", "ports_exist",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHART_MUTATIONS)
def test_a_mistake_in_the_chart_is_seen(name, tmp_path):
    template, old, new, expected = CHART_MUTATIONS[name]
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    path = chart / "templates" / template
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    for values in ("bluegreen", "training", "closed"):
        objects = render(values_of(values), chart)
        if expected == "schema":
            seen = any(next(problems(item, VERSIONS[-1]), None) for item in objects)
        else:
            seen = objects_to(expected, objects)
        if seen:
            return
    pytest.fail(f"{expected} saw nothing")


@pytest.mark.parametrize(
    ("values", "kind", "change"),
    [
        ("keda", "ServiceMonitor", lambda o: o["spec"].update(selectors={})),
        ("keda", "ServiceMonitor", lambda o: o["spec"]["endpoints"][0].update(interval="15 s")),
        ("keda", "ServiceMonitor", lambda o: o["spec"].pop("selector")),
        ("keda", "ScaledObject", lambda o: o["spec"].update(minReplicas=1)),
        ("keda", "ScaledObject", lambda o: o["spec"]["triggers"][0]["metadata"].pop("query")),
        (
            "keda",
            "ScaledObject",
            lambda o: o["spec"]["triggers"][0]["metadata"].update(threshold=0.005),
        ),
        ("small", "Service", lambda o: o["spec"].update(clusterIp="None")),
        ("small", "Service", lambda o: o["spec"]["ports"].append(o["spec"]["ports"][0])),
        ("small", "HorizontalPodAutoscaler", lambda o: o["spec"].pop("maxReplicas")),
        ("training", "Job", lambda o: o["spec"].update(completionsMode="Indexed")),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_schemas_refuse(values, kind, change, version):
    item = copy.deepcopy(pick(rendered(values), kind))
    assert list(problems(item, version)) == []
    change(item)
    assert list(problems(item, version))

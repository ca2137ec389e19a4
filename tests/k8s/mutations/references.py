"""Names that lead nowhere."""

from __future__ import annotations

import copy

from tests.k8s.checks.model import pod_of
from tests.k8s.mutations.picking import pick, server, shard

MUTATIONS = {
    "a name twice": (
        "small", "names_are_unique_and_valid",
        lambda o: o.append(copy.deepcopy(shard(o))),
    ),
    "a name too long": (
        "small", "names_are_unique_and_valid",
        lambda o: shard(o)["metadata"].update(name="x" * 64),
    ),
    "another namespace": (
        "small", "names_are_unique_and_valid",
        lambda o: shard(o)["metadata"].update(namespace="default"),
    ),
    "a label left out": (
        "small", "objects_carry_the_recommended_labels",
        lambda o: shard(o)["metadata"]["labels"].pop("app.kubernetes.io/version"),
    ),
    "a pod's label left out": (
        "training", "objects_carry_the_recommended_labels",
        lambda o: pick(o, "Job")["spec"]["template"]["metadata"]["labels"].pop(
            "app.kubernetes.io/part-of"
        ),
    ),
    "pods that their Deployment does not select": (
        "small", "selectors_select",
        lambda o: shard(o)["spec"]["template"]["metadata"]["labels"].update(
            {"mach-fleet/shard": "7"}
        ),
    ),
    "a Deployment that selects another's pods": (
        "small", "selectors_select",
        lambda o: shard(o)["spec"]["selector"]["matchLabels"].pop("mach-fleet/shard")
        and shard(o)["spec"]["selector"]["matchLabels"].pop("mach-fleet/repetitions"),
    ),
    "a Service that leads nowhere": (
        "small", "selectors_select",
        lambda o: pick(o, "Service", "shard-001")["spec"]["selector"].update(
            {"mach-fleet/bundle": "gone"}
        ),
    ),
    "a budget for nobody": (
        "small", "selectors_select",
        lambda o: pick(o, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(x="y"),
    ),
    "a policy for nobody": (
        "small", "selectors_select",
        lambda o: pick(o, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].update(x="y"),
    ),
    "pods spread among others": (
        "small", "selectors_select",
        lambda o: pod_of(shard(o))["topologySpreadConstraints"][0]["labelSelector"][
            "matchLabels"
        ].update(x="y"),
    ),
    "two budgets": (
        "bluegreen", "pods_have_at_most_one_budget",
        lambda o: pick(o, "PodDisruptionBudget", "shard-000")["spec"]["selector"][
            "matchLabels"
        ].clear(),
    ),
    "no budget": (
        "small", "pods_have_at_most_one_budget",
        lambda o: o.remove(pick(o, "PodDisruptionBudget", "aggregator")),
    ),
    "a Service's port misspelt": (
        "small", "ports_exist",
        lambda o: pick(o, "Service", "shard-001")["spec"]["ports"][0].update(targetPort="grcp"),
    ),
    "a policy's port misspelt": (
        "small", "ports_exist",
        lambda o: pick(o, "NetworkPolicy", "shards")["spec"]["ingress"][1]["ports"][0].update(
            port="metric"
        ),
    ),
    "a probe's port": (
        "small", "ports_exist",
        lambda o: server(shard(o))["livenessProbe"]["grpc"].update(port=9090),
    ),
    "a monitor's port": (
        "keda", "ports_exist",
        lambda o: pick(o, "ServiceMonitor")["spec"]["endpoints"][0].update(port="http"),
    ),
    "a monitor for nobody": (
        "keda", "ports_exist",
        lambda o: pick(o, "ServiceMonitor")["spec"]["selector"]["matchLabels"].update(x="y"),
    ),
    "a pod scraped twice": (
        "keda", "all_servers_are_scraped_once",
        lambda o: o.append(
            {**(s := copy.deepcopy(pick(o, "Service", "shard-000"))),
             "metadata": {**s["metadata"], "name": "another"}}
        ),
    ),
    "a pod not scraped": (
        "keda", "all_servers_are_scraped_once",
        lambda o: o.remove(pick(o, "ServiceMonitor", "shard")),
    ),
    "a mount without a volume": (
        "small", "volumes_and_accounts_exist",
        lambda o: pod_of(shard(o))["volumes"].pop(),
    ),
    "an account that is not there": (
        "small", "volumes_and_accounts_exist",
        lambda o: o.remove(pick(o, "ServiceAccount")),
    ),
}  # fmt: skip

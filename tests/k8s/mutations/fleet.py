"""Fleets of a wrong shape."""

from __future__ import annotations

from tests.k8s.checks.model import fetch_of
from tests.k8s.mutations.picking import aggregator, pick, replace_flag, server, shard, trainer_of

MUTATIONS = {
    "a repetition twice": (
        "small", "repetitions_are_covered_once",
        lambda o: [replace_flag(c, "--repetition", "1")
                   for c in (server(shard(o)), fetch_of(shard(o)))],
    ),
    "a shard left out": (
        "small", "repetitions_are_covered_once",
        lambda o: o.remove(pick(o, "Deployment", "shard-003")),
    ),
    "other repetitions fetched than served": (
        "gpu", "repetitions_are_covered_once",
        lambda o: replace_flag(fetch_of(shard(o)), "--repetition", "0"),
    ),
    "a label that says other repetitions": (
        "gpu", "repetitions_are_covered_once",
        lambda o: [labels.update({"mach-fleet/repetitions": "0-14"}) for labels in (
            shard(o)["spec"]["template"]["metadata"]["labels"],
            shard(o)["spec"]["selector"]["matchLabels"],
        )],
    ),
    "two versions in a fleet": (
        "small", "a_fleet_has_one_version",
        lambda o: fetch_of(shard(o)).update(
            args=[a.replace("a" * 64, "b" * 64) for a in fetch_of(shard(o))["args"]]
        ),
    ),
    "a version that can be exchanged in place": (
        "small", "a_fleet_has_one_version",
        lambda o: shard(o)["spec"]["selector"]["matchLabels"].pop("mach-fleet/version"),
    ),
    "a shard address misspelt": (
        "small", "aggregators_reach_their_own_shards",
        lambda o: server(aggregator(o)).update(
            args=[a.replace("shard-002", "shard-02") for a in server(aggregator(o))["args"]]
        ),
    ),
    "a shard's Service not headless": (
        "small", "aggregators_reach_their_own_shards",
        lambda o: pick(o, "Service", "shard-001")["spec"].pop("clusterIP"),
    ),
    "the other bundle's shards": (
        "bluegreen", "aggregators_reach_their_own_shards",
        lambda o: server(aggregator(o)).update(
            args=[a.replace("blue-shard-000", "green-shard-000")
                  for a in server(aggregator(o))["args"]]
        ),
    ),
    "another port for shards": (
        "small", "aggregators_reach_their_own_shards",
        lambda o: pick(o, "Service", "shard-001")["spec"]["ports"][0].update(port=50052),
    ),
    "a pod that looks like two": (
        "small", "a_pod_has_one_address",
        lambda o: pick(o, "Service", "shard-001")["spec"].update(ipFamilyPolicy="PreferDualStack"),
    ),
    "clients led to shards": (
        "small", "clients_reach_one_bundle",
        lambda o: pick(o, "Service", "demo-headless")["spec"]["selector"].update(
            {"app.kubernetes.io/component": "shard"}
        ),
    ),
    "clients led to both bundles": (
        "bluegreen", "clients_reach_one_bundle",
        lambda o: pick(o, "Service", "search-headless")["spec"]["selector"].pop(
            "mach-fleet/bundle"
        ),
    ),
    "a repetition not trained": (
        "training", "training_covers_every_repetition",
        lambda o: pick(o, "Job", "2026-11-a")["spec"].update(completions=15)
        or [j["spec"].update(completions=15) for j in o if "completions" in j.get("spec", {})],
    ),
    "a part with other settings": (
        "training", "training_covers_every_repetition",
        lambda o: replace_flag(trainer_of(pick(o, "Job", "collect")), "--hidden", "64"),
    ),
    "no part that collects": (
        "training", "training_covers_every_repetition",
        lambda o: o.remove(pick(o, "Job", "collect")),
    ),
}  # fmt: skip

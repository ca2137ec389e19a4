"""Servers whose traces get lost."""

from __future__ import annotations

from tests.k8s.mutations.picking import aggregator, pick, server, shard


def variable(deployment, name):
    return next(entry for entry in server(deployment)["env"] if entry["name"] == name)


MUTATIONS = {
    "a sampler that no server knows": (
        "bluegreen", "traces_reach_one_collector",
        lambda o: variable(shard(o), "OTEL_TRACES_SAMPLER").update(value="parentbased_ratio"),
    ),
    "a share above one": (
        "bluegreen", "traces_reach_one_collector",
        lambda o: variable(aggregator(o), "OTEL_TRACES_SAMPLER_ARG").update(value="5"),
    ),
    "a shard that is not traced": (
        "bluegreen", "traces_reach_one_collector",
        lambda o: server(shard(o))["env"].remove(
            variable(shard(o), "OTEL_EXPORTER_OTLP_ENDPOINT")
        ),
    ),
    "a collector behind a policy": (
        "bluegreen", "traces_reach_one_collector",
        lambda o: pick(o, "NetworkPolicy", "shards")["spec"]["egress"].pop(),
    ),
}  # fmt: skip

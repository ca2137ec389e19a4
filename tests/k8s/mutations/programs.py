"""What programs do not take, serve or expose."""

from __future__ import annotations

from tests.k8s.checks.model import fetch_of
from tests.k8s.mutations.picking import aggregator, pick, replace_flag, server, shard, trainer_of

MUTATIONS = {
    "a flag that no shard knows": (
        "small", "servers_accept_their_flags",
        lambda o: server(shard(o))["args"].append("--max-batches=3"),
    ),
    "a value that no aggregator takes": (
        "small", "servers_accept_their_flags",
        lambda o: server(aggregator(o))["args"].append("--encoding=float8"),
    ),
    "a port shown that is not listened on": (
        "small", "servers_accept_their_flags",
        lambda o: replace_flag(server(shard(o)), "--metrics-listen", "0.0.0.0:9091"),
    ),
    "an option that no trainer knows": (
        "training", "commands_accept_their_arguments",
        lambda o: trainer_of(pick(o, "Job"))["args"].append("--layers=3"),
    ),
    "a value that no trainer takes": (
        "training", "commands_accept_their_arguments",
        lambda o: replace_flag(trainer_of(pick(o, "Job")), "--quantization", "int3"),
    ),
    "an option that fetch does not know": (
        "small", "commands_accept_their_arguments",
        lambda o: fetch_of(shard(o))["args"].append("--fast"),
    ),
    "a bundle pushed nowhere": (
        "training", "commands_accept_their_arguments",
        lambda o: server(pick(o, "Job", "collect"))["args"].pop(),
    ),
    "liveness that needs the shards": (
        "small", "probes_ask_for_what_is_served",
        lambda o: server(aggregator(o))["livenessProbe"]["grpc"].update(service=""),
    ),
    "readiness that needs nothing": (
        "small", "probes_ask_for_what_is_served",
        lambda o: server(shard(o))["readinessProbe"]["grpc"].update(service="liveness"),
    ),
    "a start that needs the shards": (
        "small", "probes_ask_for_what_is_served",
        lambda o: server(aggregator(o))["startupProbe"]["grpc"].update(service=""),
    ),
    "a link that is not served": (
        "small", "fetched_is_what_is_served",
        lambda o: replace_flag(fetch_of(shard(o)), "--link", "/run/mach/current"),
    ),
    "a volume of one container only": (
        "small", "fetched_is_what_is_served",
        lambda o: server(shard(o))["volumeMounts"].pop(0),
    ),
    "a shard that fetches as an aggregator": (
        "small", "fetched_is_what_is_served",
        lambda o: replace_flag(fetch_of(shard(o)), "--role", "aggregator"),
    ),
    "a metric that KEDA will not find": (
        "keda", "metrics_exist",
        lambda o: pick(o, "ScaledObject")["spec"]["triggers"][0]["metadata"].update(
            query="sum(mach_shard_queue_length)"
        ),
    ),
    "a metric that the adapter will not find": (
        "gpu", "metrics_exist",
        lambda o: pick(o, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"][
            "metric"
        ].update(name="mach_shard_queue_wait"),
    ),
}  # fmt: skip

"""Pods that may do too much, and neighbours that may."""

from __future__ import annotations

from tests.k8s.checks.model import fetch_of, pod_of
from tests.k8s.mutations.picking import aggregator, pick, server, shard, trainer_of

MUTATIONS = {
    "root": (
        "small", "pods_are_confined",
        lambda o: pod_of(shard(o))["securityContext"].pop("runAsNonRoot"),
    ),
    "no seccomp profile": (
        "training", "pods_are_confined",
        lambda o: pod_of(pick(o, "Job"))["securityContext"].pop("seccompProfile"),
    ),
    "a token": (
        "small", "pods_are_confined",
        lambda o: pod_of(aggregator(o)).pop("automountServiceAccountToken"),
    ),
    "an account's token": (
        "small", "pods_are_confined",
        lambda o: pick(o, "ServiceAccount").pop("automountServiceAccountToken"),
    ),
    "a root that can be written": (
        "small", "pods_are_confined",
        lambda o: fetch_of(shard(o))["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    "capabilities": (
        "small", "pods_are_confined",
        lambda o: server(shard(o))["securityContext"].pop("capabilities"),
    ),
    "a cache on the read-only root": (
        "small", "caches_can_be_written",
        lambda o: next(
            e for e in server(aggregator(o))["env"] if e["name"] == "NUMBA_CACHE_DIR"
        ).update(value="/var/cache/numba"),
    ),
    "no cache for numba": (
        "small", "caches_can_be_written",
        lambda o: server(aggregator(o))["env"].pop(1),
    ),
    "no requests": (
        "small", "containers_ask_for_resources",
        lambda o: server(shard(o))["resources"].pop("requests"),
    ),
    "no memory limit": (
        "training", "containers_ask_for_resources",
        lambda o: trainer_of(pick(o, "Job"))["resources"].pop("limits"),
    ),
    "CUDA without a GPU": (
        "gpu", "gpus_go_to_programs_that_use_them",
        lambda o: server(shard(o))["resources"]["limits"].pop("nvidia.com/gpu"),
    ),
    "a GPU that idles": (
        "training", "gpus_go_to_programs_that_use_them",
        lambda o: trainer_of(pick(o, "Job", "prepare"))["resources"]["limits"].update(
            {"nvidia.com/gpu": "1"}
        ),
    ),
    "CUDA from the CPU image": (
        "gpu", "gpus_go_to_programs_that_use_them",
        lambda o: server(shard(o)).update(image="mach-fleet/serving"),
    ),
    "shards open to the namespace": (
        "small", "only_aggregators_talk_to_shards",
        lambda o: pick(o, "NetworkPolicy", "shards")["spec"]["ingress"][0].update(
            {"from": [{"podSelector": {}}]}
        ),
    ),
    "shards open to everybody": (
        "small", "only_aggregators_talk_to_shards",
        lambda o: pick(o, "NetworkPolicy", "shards")["spec"]["ingress"][0].pop("from"),
    ),
    "shards open to the other bundle": (
        "bluegreen", "only_aggregators_talk_to_shards",
        lambda o: [
            pick(o, "NetworkPolicy", "blue-shards")["spec"]["ingress"][0]["from"][0][
                "podSelector"
            ]["matchLabels"].pop(f"mach-fleet/{label}")
            for label in ("bundle", "version")
        ],
    ),
    "a way out that is closed": (
        "small", "only_aggregators_talk_to_shards",
        lambda o: pick(o, "NetworkPolicy", "aggregator")["spec"]["egress"].pop(),
    ),
    "no policy for shards": (
        "small", "only_aggregators_talk_to_shards",
        lambda o: o.remove(pick(o, "NetworkPolicy", "shards")),
    ),
}  # fmt: skip

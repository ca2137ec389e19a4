"""Replicas that are set wrongly, pods that have no time."""

from __future__ import annotations

from tests.k8s.mutations.picking import aggregator, pick, replace_flag, server, shard

MUTATIONS = {
    "an autoscaler of nothing": (
        "small", "autoscalers_have_targets",
        lambda o: pick(o, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(name="x"),
    ),
    "a Deployment scaled twice": (
        "keda", "autoscalers_have_targets",
        lambda o: pick(o, "ScaledObject", "shard-000")["spec"]["scaleTargetRef"].update(
            name=pick(o, "ScaledObject", "shard-001")["metadata"]["name"]
        ),
    ),
    "replicas beside an autoscaler": (
        "small", "autoscalers_have_targets",
        lambda o: shard(o)["spec"].update(replicas=2),
    ),
    "more at least than at most": (
        "small", "autoscalers_have_targets",
        lambda o: pick(o, "HorizontalPodAutoscaler")["spec"].update(minReplicas=100),
    ),
    "CPU of a container that is not there": (
        "small", "autoscalers_have_targets",
        lambda o: pick(o, "HorizontalPodAutoscaler", "shard")["spec"]["metrics"][0][
            "containerResource"
        ].update(container="server"),
    ),
    "no replicas at all": (
        "bluegreen", "autoscalers_have_targets",
        lambda o: shard(o)["spec"].pop("replicas"),
    ),
    "killed while it drains": (
        "small", "pods_have_time_to_finish",
        lambda o: replace_flag(server(shard(o)), "--drain-seconds", "40"),
    ),
    "SIGTERM at once": (
        "small", "pods_have_time_to_finish",
        lambda o: server(aggregator(o)).pop("lifecycle"),
    ),
    "too little time to load": (
        "small", "pods_have_time_to_start",
        lambda o: server(shard(o))["startupProbe"].update(failureThreshold=3),
    ),
    "a rollout given up before the start is": (
        "small", "pods_have_time_to_start",
        lambda o: shard(o)["spec"].update(progressDeadlineSeconds=600),
    ),
    "a pod gone before the next is there": (
        "small", "updates_keep_capacity",
        lambda o: shard(o)["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1),
    ),
    "a budget that blocks nodes": (
        "small", "updates_keep_capacity",
        lambda o: pick(o, "PodDisruptionBudget")["spec"].update(maxUnavailable=0),
    ),
}  # fmt: skip

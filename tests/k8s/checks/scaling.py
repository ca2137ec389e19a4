"""Replicas: who sets them, and how pods come and go."""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.checks.model import Release, check, flags_of, name_of, pod_of

#: What a server may need between the end of its drain and its exit.
MARGIN_SECONDS = 5


@check
def autoscalers_have_targets(release: Release) -> Iterator[str]:
    """Each autoscaler scales a Deployment, which has no fixed replicas then, and one only."""
    targets = {}
    for scaler in release.of("HorizontalPodAutoscaler", "ScaledObject"):
        spec = scaler["spec"]
        reference = spec["scaleTargetRef"]
        target = release.get("Deployment", reference["name"])
        if target is None or (reference["apiVersion"], reference["kind"]) != (
            "apps/v1",
            "Deployment",
        ):
            yield f"{name_of(scaler)} scales {reference['name']}: none such"
            continue
        if (other := targets.setdefault(name_of(target), name_of(scaler))) != name_of(scaler):
            yield f"{name_of(target)} is scaled by {other} and {name_of(scaler)}"
        if "replicas" in target["spec"]:
            yield f"{name_of(target)} has replicas and is scaled: every upgrade would reset it"
        low = spec.get("minReplicas", spec.get("minReplicaCount"))
        high = spec.get("maxReplicas", spec.get("maxReplicaCount"))
        if not 1 <= low <= high:
            yield f"{name_of(scaler)} scales from {low} to {high}"
        for metric in spec.get("metrics", []):
            if metric["type"] == "ContainerResource":
                resource = metric["containerResource"]
                container = next(
                    (c for c in pod_of(target)["containers"] if c["name"] == resource["container"]),
                    {"resources": {}},
                )
                if resource["name"] not in container["resources"].get("requests", {}):
                    yield f"{name_of(scaler)} looks at a resource that nothing requests"
    for server in release.servers:
        if name_of(server) not in targets and server["spec"].get("replicas", 0) < 1:
            yield f"{name_of(server)} has neither replicas nor an autoscaler"


@check
def pods_have_time_to_finish(release: Release) -> Iterator[str]:
    """The grace period covers the sleep before SIGTERM, the drain, and the way out."""
    for server in release.servers:
        pod = pod_of(server)
        (container,) = pod["containers"]
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if sleep < 1:
            yield f"{name_of(server)} gets SIGTERM before clients know that it goes"
        drain = float(flags_of(container)["--drain-seconds"])
        if pod.get("terminationGracePeriodSeconds", 30) < sleep + drain + MARGIN_SECONDS:
            yield f"{name_of(server)} is killed before it has slept {sleep} s and drained {drain} s"


@check
def pods_have_time_to_start(release: Release) -> Iterator[str]:
    """A shard may load for minutes; the rollout's own deadline must be later."""
    for server in release.servers:
        (container,) = pod_of(server)["containers"]
        probe = container.get("startupProbe", {})
        seconds = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)
        if seconds < 60:
            yield f"{name_of(server)} is given {seconds} s to start"
        if seconds >= server["spec"].get("progressDeadlineSeconds", 600):
            yield f"{name_of(server)}: the rollout is given up before the start is"


@check
def updates_keep_capacity(release: Release) -> Iterator[str]:
    """No pod goes before the next is ready; budgets allow a drain of nodes to go on."""
    for server in release.servers:
        strategy = server["spec"].get("strategy", {})
        if strategy.get("rollingUpdate", {}).get("maxUnavailable") != 0:
            yield f"{name_of(server)} loses a pod before the next is ready"
    for budget in release.of("PodDisruptionBudget"):
        if budget["spec"].get("maxUnavailable", 0) < 1:
            yield f"{name_of(budget)} lets no node be drained"

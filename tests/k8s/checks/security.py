"""What pods may do, and who may talk to them."""

from __future__ import annotations

from collections.abc import Iterator

from tests.k8s.checks.model import (
    Release,
    check,
    containers_of,
    labels_of,
    matches,
    name_of,
    pod_of,
)


@check
def pods_are_confined(release: Release) -> Iterator[str]:
    """The restricted Pod Security Standard, a read-only root, and no token of the cluster's API."""
    for workload in release.workloads:
        pod = pod_of(workload)
        security = pod.get("securityContext", {})
        if not security.get("runAsNonRoot") or not security.get("runAsUser"):
            yield f"{name_of(workload)} may run as root"
        if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name_of(workload)} has no seccomp profile"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name_of(workload)} mounts a token"
        for container in containers_of(workload):
            where = f"{name_of(workload)}, {container['name']}"
            own = container.get("securityContext", {})
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{where} may write to its image"
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield f"{where} may gain privileges"
            if own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{where} keeps capabilities"
            if not any(m["mountPath"] == "/tmp" for m in container.get("volumeMounts", [])):
                yield f"{where} has nowhere to write temporary files"
    for account in release.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{name_of(account)} mounts a token"


@check
def caches_can_be_written(release: Release) -> Iterator[str]:
    """What a program is told to write to is a writable mount: the root is not."""
    for workload in release.workloads:
        for container in containers_of(workload):
            writable = [
                mount["mountPath"]
                for mount in container.get("volumeMounts", [])
                if not mount.get("readOnly")
            ]
            paths = {
                entry["name"]: entry["value"]
                for entry in container.get("env", [])
                if entry["name"] in ("HOME", "NUMBA_CACHE_DIR")
            }
            if "HOME" not in paths:
                yield f"{name_of(workload)}, {container['name']} has no HOME"
            for name, path in paths.items():
                if not any(f"{path}/".startswith(f"{mount}/") for mount in writable):
                    yield f"{name_of(workload)}, {container['name']}: {name} cannot be written"
            needs_numba = container["args"][2:3] in (["aggregator"], ["trainer"])
            if needs_numba and "NUMBA_CACHE_DIR" not in paths:
                yield f"{name_of(workload)}, {container['name']} has no NUMBA_CACHE_DIR"


@check
def containers_ask_for_resources(release: Release) -> Iterator[str]:
    """Without requests the scheduler guesses; without a memory limit one pod starves a node."""
    for workload in release.workloads:
        for container in containers_of(workload):
            resources = container.get("resources", {})
            if {"cpu", "memory"} - resources.get("requests", {}).keys():
                yield f"{name_of(workload)}, {container['name']} requests too little"
            if "memory" not in resources.get("limits", {}):
                yield f"{name_of(workload)}, {container['name']} has no memory limit"


@check
def gpus_go_to_programs_that_use_them(release: Release) -> Iterator[str]:
    """``--provider=cuda`` or ``--device=cuda`` and a GPU for the pod, or neither."""
    for workload in release.workloads:
        for container in containers_of(workload):
            has_gpu = "nvidia.com/gpu" in container["resources"].get("limits", {})
            arguments = container["args"]
            trains = any(a.startswith("--repetition=$") for a in arguments)
            uses = "--provider=cuda" in arguments or ("--device=cuda" in arguments and trains)
            if has_gpu != uses:
                yield f"{name_of(workload)}, {container['name']}: GPU {has_gpu}, used {uses}"
            if "--provider=cuda" in arguments and "gpu" not in container["image"]:
                yield f"{name_of(workload)} runs CUDA from {container['image']}"


@check
def only_aggregators_talk_to_shards(release: Release) -> Iterator[str]:
    """Every server and training pod is under a policy; shards hear their own aggregators only."""
    policies = release.of("NetworkPolicy")
    if not policies:
        return
    for workload in release.workloads:
        own = [p for p in policies if matches(p["spec"]["podSelector"], labels_of(workload))]
        if not any(set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"} for p in own):
            yield f"{name_of(workload)} is under no policy"
        for policy in own:
            for rule in policy["spec"].get("ingress", []):
                yield from _callers(release, workload, policy, rule)
    for aggregator in release.component("aggregator"):
        bundle = labels_of(aggregator)["mach-fleet/bundle"]
        for shard in release.component("shard"):
            if labels_of(shard)["mach-fleet/bundle"] != bundle:
                continue
            if not _may_reach(release, aggregator, shard):
                yield f"{name_of(aggregator)} may not reach {name_of(shard)}"


def _callers(
    release: Release,
    workload: dict[str, object],
    policy: dict[str, object],
    rule: dict[str, object],
) -> Iterator[str]:
    ports = [port["port"] for port in rule.get("ports", [])]
    if not ports or not rule.get("from"):
        yield f"{name_of(policy)} opens all ports, or a port to all"
    component = labels_of(workload)["app.kubernetes.io/component"]
    if component == "training":
        yield f"{name_of(policy)} lets someone talk to training pods"
    if component != "shard" or "grpc" not in ports:
        return
    for peer in rule["from"]:
        allowed = release.selected(peer.get("podSelector", {}))
        same = [
            other
            for other in allowed
            if labels_of(other)["app.kubernetes.io/component"] == "aggregator"
            and labels_of(other)["mach-fleet/bundle"] == labels_of(workload)["mach-fleet/bundle"]
        ]
        if set(peer) != {"podSelector"} or not allowed or allowed != same:
            yield f"{name_of(policy)} lets others than its aggregators talk to shards"


def _may_reach(release: Release, source: dict[str, object], target: dict[str, object]) -> bool:
    """Whether policies let ``source`` open the gRPC port of ``target``, as labels go."""
    port = next(
        p["containerPort"] for p in pod_of(target)["containers"][0]["ports"] if p["name"] == "grpc"
    )
    out = [
        rule
        for policy in release.of("NetworkPolicy")
        if matches(policy["spec"]["podSelector"], labels_of(source))
        for rule in policy["spec"].get("egress", [])
        for peer in rule.get("to", [])
        if "podSelector" in peer and matches(peer["podSelector"], labels_of(target))
        if any(p["port"] == port for p in rule.get("ports", []))
    ]
    into = [
        rule
        for policy in release.of("NetworkPolicy")
        if matches(policy["spec"]["podSelector"], labels_of(target))
        for rule in policy["spec"].get("ingress", [])
        for peer in rule.get("from", [])
        if "podSelector" in peer and matches(peer["podSelector"], labels_of(source))
        if any(p["port"] == "grpc" for p in rule.get("ports", []))
    ]
    return bool(out and into)

"""Names that lead somewhere: selectors, ports, volumes, accounts."""

from __future__ import annotations

import re
from collections import Counter
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

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


@check
def names_are_unique_and_valid(release: Release) -> Iterator[str]:
    """Two objects of one name would overwrite each other."""
    for name, count in Counter(map(name_of, release.objects)).items():
        if count > 1:
            yield f"{name} is there {count} times"
    for item in release.objects:
        if not _DNS_LABEL.fullmatch(item["metadata"]["name"]):
            yield f"{name_of(item)} is no DNS label"
        if item["metadata"].get("namespace") != "prod":
            yield f"{name_of(item)} is not in the release's namespace"


@check
def objects_carry_the_recommended_labels(release: Release) -> Iterator[str]:
    """``app.kubernetes.io/*``, by which people and tools find them."""
    needed = {
        f"app.kubernetes.io/{name}"
        for name in ("name", "instance", "component", "version", "part-of", "managed-by")
    }
    for item in release.objects:
        if missing := needed - item["metadata"].get("labels", {}).keys():
            yield f"{name_of(item)} has no label {', '.join(sorted(missing))}"
    for workload in release.workloads:
        if missing := needed - labels_of(workload).keys():
            yield f"pods of {name_of(workload)} have no label {', '.join(sorted(missing))}"


@check
def selectors_select(release: Release) -> Iterator[str]:
    """A Deployment owns its own pods and no other's; what selects pods finds some."""
    for deployment in release.of("Deployment"):
        owners = release.selected(deployment["spec"]["selector"])
        if owners != [deployment]:
            yield f"{name_of(deployment)} selects pods of {[name_of(o) for o in owners]}"
    for service in release.of("Service"):
        if not release.selected({"matchLabels": service["spec"]["selector"]}):
            yield f"{name_of(service)} selects no pods"
    for budget in release.of("PodDisruptionBudget"):
        if not release.selected(budget["spec"]["selector"]):
            yield f"{name_of(budget)} selects no pods"
    for policy in release.of("NetworkPolicy"):
        if not release.selected(policy["spec"]["podSelector"]):
            yield f"{name_of(policy)} selects no pods"
    for workload in release.workloads:
        for constraint in pod_of(workload).get("topologySpreadConstraints", []):
            if not matches(constraint["labelSelector"], labels_of(workload)):
                yield f"{name_of(workload)} is spread among other pods than its own"


@check
def pods_have_at_most_one_budget(release: Release) -> Iterator[str]:
    """The eviction API refuses to evict a pod that two budgets select."""
    for workload in release.of("Deployment"):
        budgets = [
            name_of(budget)
            for budget in release.of("PodDisruptionBudget")
            if matches(budget["spec"]["selector"], labels_of(workload))
        ]
        if len(budgets) != 1:
            yield f"pods of {name_of(workload)} are in the budgets {budgets}, not in one"


@check
def ports_exist(release: Release) -> Iterator[str]:
    """Services, policies, probes and monitors name ports that the pods have."""
    for service in release.of("Service"):
        for workload in release.selected({"matchLabels": service["spec"]["selector"]}):
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in _ports(workload):
                    yield f"{name_of(service)} leads to the port {port['targetPort']}: none such"
    for policy in release.of("NetworkPolicy"):
        for workload in release.selected(policy["spec"]["podSelector"]):
            for rule in policy["spec"].get("ingress", []):
                for port in rule.get("ports", []):
                    if port["port"] not in _ports(workload):
                        yield f"{name_of(policy)} opens the port {port['port']}: none such"
    for workload in release.workloads:
        for container in containers_of(workload):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                port = container.get(probe, {}).get("grpc", {}).get("port")
                # An overload of the serving port, or TLS on it, must have no pod killed.
                asked = _ports(workload).get("health")
                if port is not None and port != asked:
                    yield f"{name_of(workload)}: {probe} asks port {port}, health is at {asked}"
    for monitor in release.of("ServiceMonitor"):
        watched = [
            service
            for service in release.of("Service")
            if matches(monitor["spec"]["selector"], service["metadata"]["labels"])
        ]
        if not watched:
            yield f"{name_of(monitor)} selects no Service"
        for service in watched:
            names = {port["name"] for port in service["spec"]["ports"]}
            for endpoint in monitor["spec"]["endpoints"]:
                if endpoint["port"] not in names:
                    yield f"{name_of(monitor)} scrapes {endpoint['port']} of {name_of(service)}"


def _ports(workload: dict[str, object]) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in containers_of(workload)
        for port in container.get("ports", [])
    }


@check
def all_servers_are_scraped_once(release: Release) -> Iterator[str]:
    """A pod behind two scraped Services would be counted twice."""
    if not release.of("ServiceMonitor"):
        return
    for server in release.servers:
        scraped = [
            name_of(service)
            for service in release.of("Service")
            if service["spec"]["selector"].items() <= labels_of(server).items()
            for monitor in release.of("ServiceMonitor")
            if matches(monitor["spec"]["selector"], service["metadata"]["labels"])
        ]
        if len(scraped) != 1:
            yield f"pods of {name_of(server)} are scraped through {scraped}"


@check
def volumes_and_accounts_exist(release: Release) -> Iterator[str]:
    """Every mount has its volume and every volume a mount; the service account is there."""
    for workload in release.workloads:
        pod = pod_of(workload)
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {
            mount["name"]
            for container in containers_of(workload)
            for mount in container.get("volumeMounts", [])
        }
        if volumes != mounts:
            yield f"{name_of(workload)} has volumes {sorted(volumes)} and mounts {sorted(mounts)}"
        if release.get("ServiceAccount", pod["serviceAccountName"]) is None:
            yield f"{name_of(workload)} runs as {pod['serviceAccountName']}: none such"

"""Where servers send their traces."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from mach.errors import ConfigError
from mach.tracing.setup import check_environment
from tests.k8s.checks.model import Object, Release, check, labels_of, matches, name_of, pod_of


@check
def traces_reach_one_collector(release: Release) -> Iterator[str]:
    """All servers trace or none does, by variables that they accept, where policies let them."""
    endpoints = set()
    for server in release.servers:
        (container,) = pod_of(server)["containers"]
        variables = {entry["name"]: entry.get("value", "") for entry in container["env"]}
        try:
            endpoint = check_environment(variables)
        except ConfigError as error:
            yield f"{name_of(server)}: {error}"
            continue
        endpoints.add(endpoint)
        if endpoint is not None and not _may_leave(release, server, urlsplit(endpoint).port):
            yield f"{name_of(server)} may not reach {endpoint}"
    if len(endpoints) > 1:
        yield f"servers send their traces to {endpoints}"


def _may_leave(release: Release, server: Object, port: int | None) -> bool:
    """Whether policies let a server open a port of something that is not in the release."""
    own = [
        policy
        for policy in release.of("NetworkPolicy")
        if matches(policy["spec"]["podSelector"], labels_of(server))
    ]
    open_ports = {
        entry["port"]
        for policy in own
        for rule in policy["spec"].get("egress", [])
        if not any("podSelector" in peer for peer in rule.get("to", []))
        for entry in rule["ports"]
    }
    return not own or port in open_ports

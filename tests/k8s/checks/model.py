"""Rendered objects, looked up the ways that checks need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Object = dict[str, Any]

#: Checks by name; each yields a sentence for every problem.
CHECKS: dict[str, Callable[[Release], Iterator[str]]] = {}


def check(function: Callable[[Release], Iterator[str]]) -> Callable[[Release], Iterator[str]]:
    """Register a check under its function's name."""
    CHECKS[function.__name__] = function
    return function


def name_of(item: Object) -> str:
    """``Kind/name``."""
    return f"{item['kind']}/{item['metadata']['name']}"


def matches(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector (with matchLabels only) selects labels; an empty one selects all."""
    assert set(selector) <= {"matchLabels"}, selector
    return selector.get("matchLabels", {}).items() <= labels.items()


@dataclass(frozen=True)
class Release:
    """All objects of a rendered chart."""

    objects: list[Object]

    def of(self, *kinds: str) -> list[Object]:
        """Objects of some kinds."""
        return [item for item in self.objects if item["kind"] in kinds]

    def get(self, kind: str, name: str) -> Object | None:
        """One object."""
        return next((o for o in self.of(kind) if o["metadata"]["name"] == name), None)

    @cached_property
    def workloads(self) -> list[Object]:
        """What makes pods."""
        return self.of("Deployment", "Job")

    def component(self, component: str) -> list[Object]:
        """Workloads of a component."""
        return [
            o for o in self.workloads if labels_of(o)["app.kubernetes.io/component"] == component
        ]

    @property
    def servers(self) -> list[Object]:
        """Deployments of shards and aggregators."""
        return [*self.component("shard"), *self.component("aggregator")]

    def selected(self, selector: Object) -> list[Object]:
        """Workloads whose pods a label selector selects."""
        return [o for o in self.workloads if matches(selector, labels_of(o))]

    def bundles(self) -> dict[str, list[Object]]:
        """Servers by the bundle that they serve."""
        found: dict[str, list[Object]] = {}
        for server in self.servers:
            found.setdefault(labels_of(server)["mach-fleet/bundle"], []).append(server)
        return found


def pod_of(workload: Object) -> Object:
    """A workload's pod template's spec."""
    spec: Object = workload["spec"]["template"]["spec"]
    return spec


def labels_of(workload: Object) -> dict[str, str]:
    """Labels of a workload's pods."""
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers_of(workload: Object) -> list[Object]:
    """All containers, those that run first included."""
    pod = pod_of(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def flags_of(container: Object) -> dict[str, str]:
    """``--name=value`` arguments."""
    pairs = (argument.partition("=") for argument in container.get("args", []))
    return {name: value for name, _, value in pairs if name.startswith("--")}


def fetch_of(server: Object) -> Object:
    """The container that fetches a server's bundle."""
    (container,) = pod_of(server)["initContainers"]
    return container  # type: ignore[no-any-return]

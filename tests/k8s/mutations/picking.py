"""Parts of rendered objects, to change them."""

from __future__ import annotations

from tests.k8s.checks.model import pod_of


def pick(objects, kind, part=""):
    return next(o for o in objects if o["kind"] == kind and part in o["metadata"]["name"])


def shard(objects):
    return pick(objects, "Deployment", "shard-000")


def aggregator(objects):
    return pick(objects, "Deployment", "aggregator")


def server(deployment):
    return pod_of(deployment)["containers"][0]


def replace_flag(container, flag, value):
    container["args"] = [
        f"{flag}={value}" if a.split("=")[0] == flag else a for a in container["args"]
    ]
    assert f"{flag}={value}" in container["args"]


def trainer_of(job):
    pod = pod_of(job)
    return next(
        c for c in [*pod.get("initContainers", []), *pod["containers"]] if c["name"] == "trainer"
    )

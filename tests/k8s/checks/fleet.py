"""The shape of a fleet: every repetition once, one version, a way from aggregator to shards."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.k8s.checks.model import (
    Release,
    check,
    fetch_of,
    flags_of,
    labels_of,
    name_of,
    pod_of,
)

_TARGET = re.compile(r"dns:///(?P<service>[^.]+)\.prod\.svc\.cluster\.local\.:(?P<port>\d+)")


def _repetitions(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@check
def repetitions_are_covered_once(release: Release) -> Iterator[str]:
    """Shards hold every repetition of their bundle once, fetch what they hold, and say so."""
    for bundle, servers in release.bundles().items():
        held: list[int] = []
        total = {flags_of(fetch_of(server))["--expect-repetitions"] for server in servers}
        for shard in servers:
            if labels_of(shard)["app.kubernetes.io/component"] != "shard":
                continue
            served = flags_of(pod_of(shard)["containers"][0])["--repetition"]
            repetitions = _repetitions(served)
            held += repetitions
            if flags_of(fetch_of(shard)).get("--repetition") != served:
                yield f"{name_of(shard)} serves repetitions {served} and fetches others"
            ends = f"{repetitions[0]}-{repetitions[-1]}".removesuffix(f"-{repetitions[0]}")
            if labels_of(shard)["mach-fleet/repetitions"] != ends:
                yield f"{name_of(shard)} serves repetitions {served}, its label says others"
        if [str(len(held))] != list(total) or sorted(held) != list(range(len(held))):
            yield f"the shards of {bundle} hold {sorted(held)} of {sorted(total)} repetitions"


@check
def a_fleet_has_one_version(release: Release) -> Iterator[str]:
    """What a server fetches is what its selector says, and all of a fleet say the same.

    The selector cannot be changed, so neither can the version under a running fleet.
    """
    for bundle, servers in release.bundles().items():
        versions = set()
        for server in servers:
            flags, arguments = flags_of(fetch_of(server)), fetch_of(server)["args"]
            versions.add(flags["--version"])
            location = next(a for a in arguments if a.endswith("/" + flags["--version"]))
            if not location.startswith(("s3://", "gs://", "/store/")):
                yield f"{name_of(server)} fetches from {location}"
            selector = server["spec"]["selector"]["matchLabels"]
            if selector.get("mach-fleet/version") != flags["--version"][:12]:
                yield f"{name_of(server)} is not selected by the version that it fetches"
        if len(versions) != 1:
            yield f"servers of {bundle} fetch the versions {sorted(versions)}"


@check
def aggregators_reach_their_own_shards(release: Release) -> Iterator[str]:
    """``--shards`` names the headless Service of every shard of the same bundle, once."""
    for aggregator in release.component("aggregator"):
        bundle = labels_of(aggregator)["mach-fleet/bundle"]
        targets = flags_of(pod_of(aggregator)["containers"][0])["--shards"].split(",")
        reached = []
        for target in targets:
            match = _TARGET.fullmatch(target)
            service = match and release.get("Service", match["service"])
            if not match or not service:
                yield f"{name_of(aggregator)} asks {target}, which is no Service here"
                continue
            if service["spec"].get("clusterIP") != "None":
                yield f"{name_of(service)} is not headless: one address would hide its pods"
            ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
            if ports.get("grpc") != int(match["port"]):
                yield f"{name_of(aggregator)} asks {target}, which has no such port"
            reached += release.selected({"matchLabels": service["spec"]["selector"]})
        shards = [
            s for s in release.component("shard") if labels_of(s)["mach-fleet/bundle"] == bundle
        ]
        if sorted(map(name_of, reached)) != sorted(map(name_of, shards)):
            yield f"{name_of(aggregator)} reaches {[name_of(s) for s in reached]}"


@check
def a_pod_has_one_address(release: Release) -> Iterator[str]:
    """A headless name of two families is two addresses a pod, each taken for a replica."""
    for service in release.of("Service"):
        spec = service["spec"]
        if spec.get("clusterIP") == "None" and spec.get("ipFamilyPolicy") != "SingleStack":
            yield f"{name_of(service)} names a pod by as many addresses as it has"


@check
def clients_reach_one_bundle(release: Release) -> Iterator[str]:
    """The Service that clients use leads to the aggregators of one bundle and to no shard."""
    if not release.servers:
        return
    front = [
        service
        for service in release.of("Service")
        if service["metadata"]["labels"]["app.kubernetes.io/component"] == "frontend"
    ]
    if len(front) != 2:
        yield f"there are {len(front)} Services for clients, not a plain and a headless one"
    led_to = {
        name_of(workload)
        for service in front
        for workload in release.selected({"matchLabels": service["spec"]["selector"]})
    }
    aggregators = {name_of(aggregator) for aggregator in release.component("aggregator")}
    if len(led_to) != 1 or not led_to <= aggregators:
        yield f"clients are led to {sorted(led_to)}"


@check
def training_covers_every_repetition(release: Release) -> Iterator[str]:
    """A pod for each repetition; all parts of a run are given the same data and settings."""
    jobs = release.component("training")
    if not jobs:
        return
    parts = {}
    for job in jobs:
        container = next(
            c
            for c in [*pod_of(job).get("initContainers", []), *pod_of(job)["containers"]]
            if c["name"] == "trainer"
        )
        arguments = list(container["args"])
        for own in ("--prepare", "--collect", "--repetition=$(JOB_COMPLETION_INDEX)"):
            if own in arguments:
                parts[own] = job
                arguments.remove(own)
        shared = [a for a in arguments if not a.startswith("--wait=")]
        if shared != [a for a in jobs_arguments(jobs[0]) if a in shared] or not shared:
            yield f"{name_of(job)} is given other settings than {name_of(jobs[0])}"
    if sorted(parts) != ["--collect", "--prepare", "--repetition=$(JOB_COMPLETION_INDEX)"]:
        yield f"the run consists of {sorted(parts)}"
        return
    spec = parts["--repetition=$(JOB_COMPLETION_INDEX)"]["spec"]
    total = int(
        next(a for a in jobs_arguments(jobs[0]) if a.startswith("--repetitions=")).split("=")[1]
    )
    if spec.get("completionMode") != "Indexed" or spec.get("completions") != total:
        yield f"{spec.get('completions')} pods train {total} repetitions"
    if not 1 <= spec["parallelism"] <= total:
        yield f"{spec['parallelism']} pods at once train {total} repetitions"


def jobs_arguments(job: dict[str, object]) -> list[str]:
    """Arguments of a Job's trainer."""
    pod = pod_of(job)
    return next(
        c["args"]
        for c in [*pod.get("initContainers", []), *pod["containers"]]
        if c["name"] == "trainer"
    )

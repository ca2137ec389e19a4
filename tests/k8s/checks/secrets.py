"""Certificates and tokens: what programs read is mounted, and both ends of a hop agree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from tests.k8s.checks.model import Object, Release, check, flags_of, labels_of, name_of, pod_of

#: Flags whose value is a file of a Secret.
_FILES = (
    "--tls-certificate",
    "--tls-key",
    "--tls-client-ca",
    "--shard-ca",
    "--shard-certificate",
    "--shard-key",
    "--tokens",
)


def _flags(server: Object) -> dict[str, str]:
    return flags_of(pod_of(server)["containers"][0])


@check
def secrets_are_mounted_where_they_are_read(release: Release) -> Iterator[str]:
    """Every file named is a key of a Secret, read-only; no pod gets a key that nothing reads."""
    for server in release.servers:
        pod, flags = pod_of(server), _flags(server)
        secrets = {v["name"]: v["secret"] for v in pod["volumes"] if "secret" in v}
        found = set()
        for container in [*pod["initContainers"], *pod["containers"]]:
            for mount in container["volumeMounts"]:
                secret = secrets.get(mount["name"])
                if secret is None:
                    continue
                if not mount.get("readOnly"):
                    yield f"{name_of(server)} may write to the Secret {secret['secretName']}"
                if mount.get("subPath"):
                    yield f"{name_of(server)} does not see when {secret['secretName']} changes"
                if container is not pod["containers"][0]:
                    yield f"{name_of(server)}, {container['name']} gets {secret['secretName']}"
                for item in secret.get("items", [{"path": "*"}]):
                    found.add(str(PurePosixPath(mount["mountPath"], item["path"])))
        for secret in secrets.values():
            if secret.get("defaultMode", 0o644) & 0o337:
                yield f"{name_of(server)} lets others read {secret['secretName']}"
        read = {flags[flag] for flag in _FILES if flag in flags}
        for path in sorted(read - found):
            yield f"{name_of(server)} reads {path}, which is not mounted"
        for path in sorted(found - read):
            yield f"{name_of(server)} mounts {path}, which it does not read"


@check
def both_ends_of_a_hop_agree(release: Release) -> Iterator[str]:
    """Aggregators speak TLS to shards that do, and show a certificate to those that ask."""
    for bundle, servers in release.bundles().items():
        for aggregator in servers:
            if labels_of(aggregator)["app.kubernetes.io/component"] != "aggregator":
                continue
            asks = _flags(aggregator)
            for shard in servers:
                if shard is aggregator:
                    continue
                answers = _flags(shard)
                if ("--shard-ca" in asks) != ("--tls-certificate" in answers):
                    yield f"{name_of(aggregator)} and {name_of(shard)} of {bundle}: one speaks TLS"
                if ("--shard-certificate" in asks) != ("--tls-client-ca" in answers):
                    yield f"{name_of(shard)} of {bundle} and certificates of aggregators"


@check
def services_say_what_is_spoken(release: Release) -> Iterator[str]:
    """``appProtocol`` is that of the pods: a mesh or a balancer goes by it."""
    for service in release.of("Service"):
        for port in service["spec"]["ports"]:
            if port["targetPort"] != "grpc":
                continue
            for server in release.selected({"matchLabels": service["spec"]["selector"]}):
                has_tls = "--tls-certificate" in _flags(server)
                if port.get("appProtocol") != ("https" if has_tls else "kubernetes.io/h2c"):
                    yield f"{name_of(service)} says {port.get('appProtocol')} of {name_of(server)}"

"""Certificates that are not there, keys in the wrong hands, hops that do not fit."""

from __future__ import annotations

from tests.k8s.checks.model import fetch_of, pod_of
from tests.k8s.mutations.picking import aggregator, pick, replace_flag, server, shard


def volume(deployment, name):
    return next(v for v in pod_of(deployment)["volumes"] if v["name"] == name)


def mount(deployment, name):
    return next(m for m in server(deployment)["volumeMounts"] if m["name"] == name)


def without_flags(deployment, *flags):
    container = server(deployment)
    container["args"] = [a for a in container["args"] if a.split("=")[0] not in flags]


MUTATIONS = {
    "a certificate that is not mounted": (
        "closed", "secrets_are_mounted_where_they_are_read",
        lambda o: replace_flag(server(shard(o)), "--tls-certificate", "/etc/tls/tls.crt"),
    ),
    "tokens under another key": (
        "closed", "secrets_are_mounted_where_they_are_read",
        lambda o: volume(aggregator(o), "tokens")["secret"]["items"][0].update(path="tokens"),
    ),
    "the shards' key in aggregators": (
        "closed", "secrets_are_mounted_where_they_are_read",
        lambda o: volume(aggregator(o), "shard-ca")["secret"]["items"].append(
            {"key": "tls.key", "path": "tls.key"}
        ),
    ),
    "a whole Secret": (
        "closed", "secrets_are_mounted_where_they_are_read",
        lambda o: volume(shard(o), "tls")["secret"].pop("items"),
    ),
    "a key that everybody may read": (
        "closed", "secrets_are_mounted_where_they_are_read",
        lambda o: volume(shard(o), "tls")["secret"].update(defaultMode=0o444),
    ),
    "a Secret mounted to write": (
        "closed", "secrets_are_mounted_where_they_are_read",
        lambda o: mount(shard(o), "tls").pop("readOnly"),
    ),
    "a file that does not follow its Secret": (
        "closed", "secrets_are_mounted_where_they_are_read",
        lambda o: mount(shard(o), "tls").update(subPath="tls.crt"),
    ),
    "a key for what fetches": (
        "closed", "secrets_are_mounted_where_they_are_read",
        lambda o: fetch_of(shard(o))["volumeMounts"].append(
            {"name": "tls", "mountPath": "/etc/mach/tls", "readOnly": True}
        ),
    ),
    "plain text to shards that speak TLS": (
        "closed", "both_ends_of_a_hop_agree",
        lambda o: without_flags(aggregator(o), "--shard-ca"),
    ),
    "shards in plain text": (
        "closed", "both_ends_of_a_hop_agree",
        lambda o: without_flags(shard(o), "--tls-certificate", "--tls-key"),
    ),
    "no certificate for shards that ask": (
        "closed", "both_ends_of_a_hop_agree",
        lambda o: without_flags(aggregator(o), "--shard-certificate", "--shard-key"),
    ),
    "a Service that says plain text": (
        "closed", "services_say_what_is_spoken",
        lambda o: pick(o, "Service", "demo-headless")["spec"]["ports"][0].update(
            appProtocol="kubernetes.io/h2c"
        ),
    ),
    "a Service that says TLS": (
        "small", "services_say_what_is_spoken",
        lambda o: pick(o, "Service", "shard-000")["spec"]["ports"][0].update(appProtocol="https"),
    ),
    "a probe that speaks no TLS": (
        "closed", "ports_exist",
        lambda o: server(shard(o))["readinessProbe"]["grpc"].update(port=50051),
    ),
    "a health port not listened on": (
        "closed", "servers_accept_their_flags",
        lambda o: without_flags(shard(o), "--health-listen"),
    ),
    "half a certificate": (
        "closed", "servers_accept_their_flags",
        lambda o: without_flags(aggregator(o), "--shard-key"),
    ),
}  # fmt: skip

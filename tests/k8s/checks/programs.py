"""What the objects say to the programs, put to the programs' own settings and metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import typer
import yaml
from prometheus_client import CollectorRegistry
from typer.main import get_command

import trainer.command
from aggregator.metrics import AggregatorMetrics
from aggregator.settings import AggregatorSettings
from mach.bundle import Bundle
from mach.cli import bundle as bundle_command
from mach.errors import ConfigError
from mach.serving import LIVENESS, load_settings, new_registry, split_address
from mach.serving.bundles import BundleHost
from mach.serving.guard import new_calls_counter
from mach.serving.metrics import ServerMetrics
from mach.serving.security import SecurityMetrics
from shard_server.metrics import ShardMetrics
from shard_server.settings import ShardSettings
from tests.k8s.checks.model import Release, check, containers_of, fetch_of, name_of, pod_of
from tests.k8s.rendering import ROOT
from trainer.settings import TrainSettings

ADAPTER_RULES = ROOT / "k8s" / "monitoring" / "prometheus-adapter.yaml"
_SETTINGS = {"shard_server": ShardSettings, "aggregator": AggregatorSettings}
_LABELS = re.compile(r"\{[^}]*\}|\b(by|on|group_left|group_right|without|ignoring) *\([^)]*\)")
_METRIC = re.compile(r"\b(?:mach|grpc_server)_\w+")


@check
def servers_accept_their_flags(release: Release) -> Iterator[str]:
    """Every flag is one of the server's and its value one that it takes."""
    for server in release.servers:
        (container,) = pod_of(server)["containers"]
        python, dash_m, program, *flags = container["args"]
        if (python, dash_m) != ("python", "-m") or program not in _SETTINGS:
            yield f"{name_of(server)} runs {container['args'][:3]}"
            continue
        try:
            settings = load_settings(_SETTINGS[program], flags, program=program)
        except ConfigError as error:
            yield f"{name_of(server)}: {error}"
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        listens = {
            "grpc": split_address(settings.listen)[1],
            "metrics": split_address(settings.metrics_listen or "none:0")[1],
        }
        if settings.health_listen is not None:
            listens["health"] = split_address(settings.health_listen)[1]
        if listens != ports:
            yield f"{name_of(server)} listens on {listens} and shows {ports}"


@check
def commands_accept_their_arguments(release: Release) -> Iterator[str]:
    """The same for the trainer and for what fetches and publishes bundles."""
    for workload in release.workloads:
        for container in containers_of(workload):
            match container["args"]:
                case ["python", "-m", "trainer", *arguments]:
                    problem = _parse(
                        _trainer(), [a.replace("$(JOB_COMPLETION_INDEX)", "0") for a in arguments]
                    )
                case ["mach", *arguments]:
                    problem = _parse(_mach(), arguments)
                case ["python", "-m", ("shard_server" | "aggregator"), *_]:
                    problem = None
                case other:
                    problem = f"runs {other}"
            if problem:
                yield f"{name_of(workload)}, {container['name']}: {problem}"


@cache
def _trainer() -> typer.core.TyperCommand:
    app = typer.Typer()
    app.command()(trainer.command.make_command(parts=True))
    return get_command(app)


@cache
def _mach() -> typer.core.TyperGroup:
    app = typer.Typer()
    app.callback()(lambda: None)
    bundle_command.register(app)
    return get_command(app)


def _parse(command: typer.core.TyperCommand, arguments: list[str]) -> str | None:
    """What is wrong with a command line; values of the trainer are checked by its settings."""
    try:
        context = command.make_context("command", list(arguments), resilient_parsing=False)
        while hasattr(context.command, "commands"):  # `mach bundle fetch` is a command of a command
            name, command, rest = context.command.resolve_command(
                context, [*context._protected_args, *context.args]
            )
            context = command.make_context(name, rest, parent=context)
        if context.params.keys() & TrainSettings.model_fields.keys():
            fields = {k: v for k, v in context.params.items() if k in TrainSettings.model_fields}
            trainer.command._settings(fields)
    except Exception as error:
        return f"{type(error).__name__}: {getattr(error, 'message', error)}"
    return None


@check
def probes_ask_for_what_is_served(release: Release) -> Iterator[str]:
    """Readiness may depend on shards, liveness and an aggregator's start must not."""
    for server in release.servers:
        (container,) = pod_of(server)["containers"]
        is_shard = container["args"][2] == "shard_server"
        expected = {
            "startupProbe": "" if is_shard else LIVENESS,
            "readinessProbe": "",
            "livenessProbe": LIVENESS,
        }
        for probe, service in expected.items():
            asked = container.get(probe, {}).get("grpc", {}).get("service")
            if asked != service:
                yield f"{name_of(server)}: {probe} asks for {asked!r}, not {service!r}"


@check
def fetched_is_what_is_served(release: Release) -> Iterator[str]:
    """The server opens the link that the first container makes, in volumes that both mount."""
    for server in release.servers:
        fetch, (container,) = fetch_of(server), pod_of(server)["containers"]
        link = next((a for a in fetch["args"] if a.startswith("--link=")), "").removeprefix(
            "--link="
        )
        if f"--bundle={link}" not in container["args"]:
            yield f"{name_of(server)} fetches to {link} and serves something else"
        for place in ("/bundles", str(Path(link).parent)):
            volumes = {
                mount["name"]
                for each in (fetch, container)
                for mount in each["volumeMounts"]
                if mount["mountPath"] == place
            }
            mounted = [
                any(mount["mountPath"] == place for mount in each["volumeMounts"])
                for each in (fetch, container)
            ]
            if len(volumes) != 1 or not all(mounted):
                yield f"{name_of(server)}: {place} is not one volume of both containers"
        role = "shard" if container["args"][2] == "shard_server" else "aggregator"
        if f"--role={role}" not in fetch["args"]:
            yield f"{name_of(server)} does not fetch what a server of its kind reads"


@cache
def metric_names() -> frozenset[str]:
    """Every series name that the services' metrics can have."""
    registries = [new_registry("shard_server"), CollectorRegistry()]
    ServerMetrics(registries[0])
    SecurityMetrics(registries[0])
    new_calls_counter(registries[0])
    ShardMetrics(registries[0])
    AggregatorMetrics(registries[1])
    BundleHost(Bundle.open, Bundle.open, registries[0], root=ROOT)
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
    return frozenset(
        family.name + suffix
        for registry in registries
        for family in registry.collect()
        for suffix in suffixes.get(family.type, ("",))
    )


def adapter_metrics() -> dict[str, str]:
    """Metrics that prometheus-adapter's rules make, with their queries."""
    config = yaml.safe_load(ADAPTER_RULES.read_text())
    return {
        rule["name"]["as"]: f"{rule['seriesQuery']} {rule['metricsQuery']}"
        for rule in config["rules"]
    }


def unknown_metrics(query: str) -> set[str]:
    """Names of metrics in a query that no service exposes."""
    return set(_METRIC.findall(_LABELS.sub("", query))) - metric_names()


@check
def metrics_exist(release: Release) -> Iterator[str]:
    """Autoscalers ask for metrics that the services expose, or that the adapter's rules make."""
    for scaler in release.of("ScaledObject"):
        for trigger in scaler["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            if unknown := unknown_metrics(query):
                yield f"{name_of(scaler)} asks for {sorted(unknown)}"
            if not _METRIC.findall(query):
                yield f"{name_of(scaler)} asks for no metric of ours"
    for scaler in release.of("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] == "Pods":
                name = metric["pods"]["metric"]["name"]
                if name not in metric_names() and name not in adapter_metrics():
                    yield f"{name_of(scaler)} asks for {name}"

"""Tracing as the environment asks for it, by the variables that OpenTelemetry specifies.

``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``…_TRACES_ENDPOINT``) turns it on. A mistake in a variable
read here is an error at the start; OpenTelemetry itself would warn and take a default.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from mach import __version__
from mach.errors import ConfigError
from mach.tracing.state import install

__all__ = ["check_environment", "configure"]

_logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_FILES = tuple(
    f"OTEL_EXPORTER_OTLP_{traces}{name}"
    for traces in ("TRACES_", "")
    for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
)
_RATIO = ("traceidratio", "parentbased_traceidratio")
_SAMPLERS = ("always_on", "always_off", "parentbased_always_on", "parentbased_always_off", *_RATIO)
#: How long the last spans may take to reach the collector when a server ends.
_FLUSH_SECONDS = 3.0


def check_environment(environment: Mapping[str, str]) -> str | None:
    """The collector's endpoint, or None where tracing is off.

    Raises:
        ConfigError: naming the variable that cannot be obeyed.
    """
    name, endpoint = next(
        ((name, value) for name in _ENDPOINTS if (value := environment.get(name))), ("", "")
    )
    if not endpoint or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none":
        return None
    if exporter != "otlp":
        raise ConfigError(f"OTEL_TRACES_EXPORTER: must be otlp or none, got {exporter!r}")
    for variable in _PROTOCOLS:
        if environment.get(variable, "grpc") not in ("", "grpc"):
            raise ConfigError(f"{variable}: must be grpc, got {environment[variable]!r}")
    if not _is_endpoint(endpoint):
        raise ConfigError(f"{name}: {endpoint!r} is not http://HOST:PORT or https://HOST:PORT")
    for variable in _FILES:
        if (path := environment.get(variable)) and not Path(path).is_file():
            raise ConfigError(f"{variable}: there is no file {path}")
    _check_sampler(environment)
    return endpoint


def _is_endpoint(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        return False


def _check_sampler(environment: Mapping[str, str]) -> None:
    sampler = (environment.get("OTEL_TRACES_SAMPLER") or _SAMPLERS[2]).lower()
    if sampler not in _SAMPLERS:
        raise ConfigError(
            f"OTEL_TRACES_SAMPLER: must be one of {', '.join(_SAMPLERS)}, got {sampler!r}"
        )
    if sampler in _RATIO:
        ratio = environment.get("OTEL_TRACES_SAMPLER_ARG") or "1"
        try:
            valid = 0 <= float(ratio) <= 1
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG: must be from 0 to 1, got {ratio!r}")


def configure(component: str) -> Callable[[], None]:
    """Turn tracing on if the environment names a collector.

    Args:
        component: ``shard_server`` or ``aggregator``; part of the default service name.

    Returns:
        A function that sends the last spans, for some seconds at most, and turns it off again.

    Raises:
        ConfigError: if it is asked for in a way that cannot be had.
    """
    endpoint = check_environment(os.environ)
    if endpoint is None:
        return lambda: None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        from mach.tracing.making import Spans  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but tracing is not installed: "
            f"pip install 'mach-fleet[trace]' ({error})"
        ) from error
    own = {"service.name": f"mach-{component.replace('_', '-')}", "service.version": __version__}
    resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
    try:
        exporter = OTLPSpanExporter()
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except (OSError, ValueError) as error:  # a timeout or a batch size that is no number
        raise ConfigError(f"tracing cannot be set up as the environment asks: {error}") from error
    install(Spans(provider.get_tracer("mach", __version__)))
    _logger.info("traces go to %s", endpoint)

    def shut_down() -> None:
        install(None)
        # On a thread: with the collector away the provider would try for half a minute.
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)
        if flushing.is_alive():
            exporter.shutdown()
            flushing.join(1.0)

    return shut_down

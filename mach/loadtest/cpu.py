"""CPU seconds of the measured processes, read where they publish them."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from prometheus_client.parser import text_string_to_metric_families

from mach.direct import open_url
from mach.errors import ConfigError

__all__ = ["CpuMeter", "MetricsCpu", "Usage", "spent"]


class Usage(NamedTuple):
    """What a process has used."""

    started: float
    """When it started, seconds since the epoch; 0 where it does not say."""
    seconds: float
    """User and system seconds since then."""


class CpuMeter(Protocol):
    """Something that knows how much CPU each process of the fleet has used so far."""

    def read(self) -> Mapping[str, Usage]:
        """By process.

        Raises:
            ConfigError: if one cannot be asked.
        """


def spent(before: Mapping[str, Usage], after: Mapping[str, Usage]) -> float | None:
    """CPU seconds between two readings; None where a process is not the one it was."""
    total = 0.0
    for name, then in before.items():
        now = after.get(name)
        if now is None or now.started != then.started or now.seconds < then.seconds:
            return None
        total += now.seconds - then.seconds
    return total


class MetricsCpu:
    """Reads ``process_cpu_seconds_total`` from the metrics endpoints of a fleet.

    Args:
        urls: such as ``http://127.0.0.1:9090/metrics``.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)

    def read(self) -> dict[str, Usage]:
        """By URL, see :class:`CpuMeter`.

        Raises:
            ConfigError: if an endpoint does not answer or has no such metric.
        """
        return {url: _read(url) for url in self._urls}


def _read(url: str) -> Usage:
    try:
        with open_url(url, timeout=5) as answer:
            text = answer.read().decode()
        found: dict[str, list[float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample.value)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"--metrics: {url} cannot be read: {error}") from error
    if "process_cpu_seconds_total" not in found:
        raise ConfigError(f"--metrics: {url} has no process_cpu_seconds_total")
    return Usage(
        sum(found.get("process_start_time_seconds", [])), sum(found["process_cpu_seconds_total"])
    )

"""CPU seconds of the measured processes, read where they publish them."""

from __future__ import annotations

import urllib.error
from collections.abc import Sequence
from typing import Protocol

from prometheus_client.parser import text_string_to_metric_families

from mach.direct import open_url
from mach.errors import ConfigError

__all__ = ["CpuMeter", "MetricsCpu"]


class CpuMeter(Protocol):
    """Something that knows how much CPU the fleet has used so far."""

    def total_seconds(self) -> float:
        """User and system seconds of all its processes since they started."""


class MetricsCpu:
    """Sums ``process_cpu_seconds_total`` over the metrics endpoints of a fleet.

    Args:
        urls: such as ``http://127.0.0.1:9090/metrics``.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)

    def total_seconds(self) -> float:
        """See :class:`CpuMeter`.

        Raises:
            ConfigError: if an endpoint does not answer or has no such metric.
        """
        total = 0.0
        for url in self._urls:
            try:
                with open_url(url, timeout=5) as answer:
                    text = answer.read().decode()
            except (urllib.error.URLError, OSError, ValueError) as error:
                raise ConfigError(f"--metrics: {url} cannot be read: {error}") from error
            samples = [
                sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == "process_cpu_seconds_total"
            ]
            if not samples:
                raise ConfigError(f"--metrics: {url} has no process_cpu_seconds_total")
            total += sum(samples)
        return total

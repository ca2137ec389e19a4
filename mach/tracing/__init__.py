"""Spans of OpenTelemetry in the servers: off by default, and then nothing of it is imported.

:func:`configure` turns tracing on where the environment names a collector. A span is made from
its parent, never from what happens to be current: one batch serves many calls. What the call at
hand is part of is in :func:`current`; only sampled spans (:func:`sampled`) have children.
"""

from mach.tracing.setup import configure
from mach.tracing.state import (
    Headers,
    current,
    enter,
    exemplar,
    install,
    sampled,
    spans,
    use,
)

__all__ = [
    "Headers",
    "configure",
    "current",
    "enter",
    "exemplar",
    "install",
    "sampled",
    "spans",
    "use",
]

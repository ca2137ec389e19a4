"""What both gRPC servers share: settings, health, metrics, errors, drain.

A server derives its settings from :class:`ServingSettings`, implements :class:`Service`,
and hands both to :func:`main`. Importing this package loads neither NumPy nor a model.
"""

from mach.serving.bundles import BundleHost
from mach.serving.guard import charge
from mach.serving.health import LIVENESS, Health
from mach.serving.interceptors import RETRY_PUSHBACK, ErrorInterceptor, MetricsInterceptor
from mach.serving.logs import configure_logging
from mach.serving.metrics import LATENCY_BUCKETS, new_registry
from mach.serving.options import channel_options, server_options
from mach.serving.security import Watched
from mach.serving.server import main, run, serve
from mach.serving.service import Service
from mach.serving.settings import (
    CommaSeparatedInts,
    CommaSeparatedStrings,
    ServingSettings,
    load_settings,
    split_address,
)

__all__ = [
    "LATENCY_BUCKETS",
    "LIVENESS",
    "RETRY_PUSHBACK",
    "BundleHost",
    "CommaSeparatedInts",
    "CommaSeparatedStrings",
    "ErrorInterceptor",
    "Health",
    "MetricsInterceptor",
    "Service",
    "ServingSettings",
    "Watched",
    "channel_options",
    "charge",
    "configure_logging",
    "load_settings",
    "main",
    "new_registry",
    "run",
    "serve",
    "server_options",
    "split_address",
]

"""What a server process serves, as :func:`mach.serving.serve` sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import grpc

from mach.serving.bundles import BundleHost
from mach.serving.health import Health
from mach.serving.security import Watched

__all__ = ["Service"]


class Service(ABC):
    """What a process serves. All methods are called on the event loop."""

    #: Full names of the gRPC services, such as ``mach.v1.ShardService``.
    names: Sequence[str]
    #: The bundles that the admin service switches between; None where there are none.
    bundles: BundleHost[Any] | None = None
    #: Whether a call that belongs to no trace begins one, if the sampler says so.
    starts_traces = False
    #: Whether callers of ``names`` need a token where tokens are configured.
    asks_for_tokens: bool = True
    #: Files of its own to take up when they change.
    watched: Sequence[Watched] = ()

    @abstractmethod
    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicers. Called before anything is loaded."""

    @abstractmethod
    async def start(self, health: Health) -> None:
        """Load and warm up, then ``health.set_serving(True)``, now or later, once or often.

        The port is open meanwhile and health is NOT_SERVING: servicers raise ``Unavailable``.
        A ``UserError`` ends the process with its sentence and exit code 2.
        """

    async def drain(self) -> None:  # noqa: B027 - most services have no long-lived calls
        """End long-lived calls once they have answered what they accepted.

        No new call arrives; calls in flight get ``drain_seconds`` from here on.
        """

    async def close(self) -> None:  # noqa: B027
        """Release what :meth:`start` acquired. No call is in flight any more."""

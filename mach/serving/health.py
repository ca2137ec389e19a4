"""``grpc.health.v1``: whether a server can answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mach.serving.binding import bind
from mach.serving.options import server_options

__all__ = ["LIVENESS", "MOST_WATCHES", "Health", "start_health_server"]

#: They need no token and never end.
MOST_WATCHES = 1024

_MESSAGE_BYTES = 4096
_MAX_RPCS = 2 * MOST_WATCHES  # so that probes find room

_Status = health_pb2.HealthCheckResponse

#: The name that is SERVING for as long as the process answers at all: for what would restart
#: it, such as Kubernetes' liveness probe, which must not act because a shard is away.
LIVENESS = "liveness"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # has no stubs
    """NOT_SERVING until :meth:`set_serving`, and for ever after :meth:`close`.

    The server as a whole (the empty name) and its services share that state; :data:`LIVENESS`
    is always SERVING. Unlike the servicer that comes with gRPC it ends its watches on
    :meth:`close`, so that they do not hold up a drain.
    """

    def __init__(self, services: Iterable[str] = (), max_watches: int = MOST_WATCHES) -> None:
        """Serve some services' state, and to so many watches at once."""
        self._names = {"", LIVENESS, *services}
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()
        self._watches_left = max_watches

    @property
    def serving(self) -> bool:
        """Whether clients are told SERVING."""
        return self._serving

    def set_serving(self, serving: bool) -> None:
        """Tell clients; call it on the event loop. Without effect once closed."""
        if not self._closed and serving != self._serving:
            self._serving = serving
            self._notify()

    def close(self) -> None:
        """NOT_SERVING for good; watches end once they have been told."""
        self._serving = False
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, name: str) -> int:
        if name not in self._names:
            return int(_Status.SERVICE_UNKNOWN)
        serving = self._serving or name == LIVENESS
        return int(_Status.SERVING if serving else _Status.NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - named by the protocol
        """The state now; NOT_FOUND for a service that is not here."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return _Status(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """The state now and after each change; RESOURCE_EXHAUSTED beyond the most watches."""
        if not self._watches_left:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")
        self._watches_left -= 1
        try:
            await self._watch(request, context)
        finally:
            self._watches_left += 1

    async def _watch(self, request: Any, context: Any) -> None:
        last = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                await context.write(_Status(status=status))
                last = status
                continue  # the write took time: look again before waiting
            if self._closed:
                return
            await changed.wait()


async def start_health_server(health: Health, address: str) -> tuple[grpc.aio.Server, str]:
    """Serve the health service alone, in plain text, without tokens or reflection.

    Returns:
        The server, and the address bound.

    Raises:
        ConfigError: if the address cannot be bound.
    """
    server = grpc.aio.server(
        options=server_options(max_message_bytes=_MESSAGE_BYTES), maximum_concurrent_rpcs=_MAX_RPCS
    )
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    bound = bind(server, "--health-listen", address)
    await server.start()
    return server, bound

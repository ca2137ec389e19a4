"""The life of a server process: bind, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from mach import tracing
from mach.errors import ConfigError, UserError
from mach.serving.admin import ADMIN_SERVICE, AdminServicer
from mach.serving.binding import bind, write_ready_file
from mach.serving.calls import CallInterceptor
from mach.serving.health import MOST_WATCHES, Health, start_health_server
from mach.serving.interceptors import ErrorInterceptor, MetricsInterceptor
from mach.serving.logs import configure_logging
from mach.serving.metrics import ServerMetrics, new_registry, start_metrics_server
from mach.serving.options import server_options
from mach.serving.security import Security
from mach.serving.service import Service
from mach.serving.settings import ServingSettings, load_settings
from mach.serving.threads import Threads
from mach.serving.workers import run_workers
from mach.v1 import admin_pb2_grpc

__all__ = ["main", "run", "serve"]

_logger = logging.getLogger(__name__)
_LAST_CALLS_SECONDS = 0.1
#: Nearly all that a call makes is freed as it ends; by default a collection looks at what is left
#: after every few calls, which is 3 % of what an aggregator's event loop does.
_COLLECTIONS = (10_000, 20, 20)
_HEALTH_SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class _Stop:
    """Set by the first SIGTERM or SIGINT; ``now`` by the second."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.now = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.requested.is_set():
            self.now.set()
        else:
            _logger.info("%s: draining", number.name)
            self.requested.set()

    def close(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def serve(
    service: Service,
    settings: ServingSettings,
    registry: CollectorRegistry,
    *,
    reuse_port: bool = False,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        service: what to serve.
        settings: where and how.
        registry: what the metrics port shows.
        reuse_port: let other processes listen on the same port, each taking some connections;
            this one does when it has started.
        interceptors: run inside those for request ids, metrics and errors, in this order.

    Raises:
        ConfigError: if an address cannot be bound, or a certificate or token file not be used.
        UserError: what :meth:`Service.start` raises.
    """
    security = Security(
        settings,
        registry,
        scopes={**dict.fromkeys(service.names, "search"), ADMIN_SERVICE: "admin"},
        open_services=[_HEALTH_SERVICE, *(() if service.asks_for_tokens else service.names)],
        watched=service.watched,
    )
    around = [
        CallInterceptor(starts_traces=service.starts_traces),
        MetricsInterceptor(ServerMetrics(registry)),
        ErrorInterceptor(),
        *security.interceptors,
        *interceptors,
    ]

    def new_server(names: Sequence[str], reuse_port: bool) -> grpc.aio.Server:
        server = grpc.aio.server(
            interceptors=around,
            options=server_options(
                max_message_bytes=settings.max_message_bytes,
                max_waiting_calls=settings.max_waiting_calls,
                reuse_port=reuse_port,
                max_connection_age=settings.max_connection_age_seconds,
                connection_grace=settings.drain_seconds,
            ),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
        )
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        if settings.reflection:
            shown = (*names, _HEALTH_SERVICE, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(shown, server)
        return server

    # A quarter of the calls at most: strangers may watch, and must not keep others out.
    health = Health(service.names, max_watches=min(MOST_WATCHES, settings.max_concurrent_rpcs // 4))
    server = new_server(service.names, reuse_port)
    service.register(server)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, 0)
        addresses: dict[str, str | None] = {
            "listen": None,
            "metrics": None,
            "admin": None,
            "health": None,
        }

        async def open_port() -> None:
            addresses["listen"] = bind(
                server,
                "--listen",
                settings.listen,
                reuse_port=reuse_port,
                credentials=security.credentials(),
            )
            await server.start()
            if settings.ready_file is not None:
                write_ready_file(settings.ready_file, addresses)
            _logger.info(
                "listening on %s, metrics on %s",
                addresses["listen"],
                addresses["metrics"] or "no port",
            )

        if settings.metrics_listen is not None:
            addresses["metrics"], close = start_metrics_server(settings.metrics_listen, registry)
            stack.callback(close)
        if settings.admin_listen is not None:
            if service.bundles is None:
                raise ConfigError("--admin-listen: this server has no bundles to switch between")
            admin = new_server([ADMIN_SERVICE], False)
            stack.push_async_callback(admin.stop, 0)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(service.bundles), admin)
            addresses["admin"] = bind(
                admin, "--admin-listen", settings.admin_listen, credentials=security.credentials()
            )
            await admin.start()
        if settings.health_listen is not None:
            probed, addresses["health"] = await start_health_server(health, settings.health_listen)
            stack.push_async_callback(probed.stop, 0)
        stop = _Stop()
        stack.callback(stop.close)
        if not reuse_port:
            await open_port()
        watching = asyncio.create_task(security.watch(), name="watch on files")
        stack.callback(watching.cancel)
        stack.push_async_callback(service.close)
        # Where others listen on the port too, callers shall find the ones that are ready.
        await _run_until_stopped(service, health, stop, open_port if reuse_port else None)
        await _drain(server, service, health, stop, settings.drain_seconds)
        _logger.info("stopped")


async def _run_until_stopped(
    service: Service,
    health: Health,
    stop: _Stop,
    started: Callable[[], Awaitable[None]] | None,
) -> None:
    starting = asyncio.create_task(service.start(health))
    stopping = asyncio.create_task(stop.requested.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            if started is not None:
                await started()
            # What is alive now lives as long as the process: a collection that walks it all
            # again and again stops the event loop for tens of milliseconds each time.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*_COLLECTIONS)
            await stopping
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)


async def _drain(
    server: grpc.aio.Server, service: Service, health: Health, stop: _Stop, seconds: float
) -> None:
    health.close()
    # What has arrived and was not taken up yet would be cancelled by a stop at once.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.now.wait(), min(seconds, _LAST_CALLS_SECONDS))
    stopped = asyncio.create_task(server.stop(seconds))
    draining = asyncio.create_task(service.drain())
    at_once = asyncio.create_task(stop.now.wait())
    try:
        await asyncio.wait({stopped, at_once}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            _logger.warning("second signal: calls in flight are cancelled")
            await server.stop(0)
        await stopped
    finally:
        at_once.cancel()
        draining.cancel()
        results = await asyncio.gather(draining, at_once, return_exceptions=True)
        if isinstance(results[0], Exception):
            _logger.error("draining failed", exc_info=results[0])


S = TypeVar("S", bound=ServingSettings)


def run(
    settings: S,
    factory: Callable[[S, CollectorRegistry], Service],
    *,
    component: str,
    reuse_port: bool = False,
) -> int:
    """Serve in this process with settings at hand; returns the exit code.

    Where a thread is still loading when all else has ended, the process ends with it at once.

    Args:
        settings: where and how.
        factory: makes the service, on the event loop.
        component: ``shard_server`` or ``aggregator``: for metrics and messages.
        reuse_port: see :func:`serve`.
    """
    configure_logging(settings.log_level, settings.log_format)
    threads = Threads()
    return threads.leave(_run(settings, factory, component, reuse_port, threads))


def _run(
    settings: S,
    factory: Callable[[S, CollectorRegistry], Service],
    component: str,
    reuse_port: bool,
    threads: Threads,
) -> int:
    registry = new_registry(component)

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(threads)
        await serve(factory(settings, registry), settings, registry, reuse_port=reuse_port)

    try:
        end_tracing = tracing.configure(component)
        try:
            uvloop.run(main())
        finally:
            end_tracing()
    except UserError as error:
        if settings.log_format == "json":
            _logger.error("%s", error)
        else:
            print(f"{component}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:
        _logger.exception("%s failed", component)
        return 1
    return 0


def main(
    settings_class: type[S],
    factory: Callable[[S, CollectorRegistry], Service],
    *,
    component: str,
    argv: Sequence[str] | None = None,
    workers: Callable[[S], int] = lambda settings: 1,
) -> int:
    """What ``python -m`` of a server does; returns the exit code.

    A wrong flag, a port in use, a bundle that cannot be served: one sentence on stderr and 2.

    Args:
        settings_class: the server's settings.
        factory: makes the service from them.
        component: for metrics and messages.
        argv: the flags; those of this process where not given.
        workers: how many processes the settings ask for.
    """
    try:
        settings = load_settings(settings_class, argv, program=f"python -m {component}")
        count = workers(settings)
        if count > 1:
            configure_logging(settings.log_level, settings.log_format)
            shared = partial(run, factory=factory, component=component, reuse_port=True)
            return run_workers(settings, shared, count)
    except ConfigError as error:
        print(f"{component}: {error}", file=sys.stderr)
        return 2
    return run(settings, factory, component=component)

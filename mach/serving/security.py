"""What guards a server's ports: its certificate, its tokens, and the watch on their files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge

from mach.errors import UserError
from mach.reloading import Reloaded
from mach.serving.authentication import TokenInterceptor
from mach.serving.guard import TokenGuard
from mach.serving.settings import ServingSettings
from mach.tls import ServerTls
from mach.tokens import Scope

__all__ = ["Security", "SecurityMetrics", "Watched"]

_logger = logging.getLogger(__name__)


class Watched(NamedTuple):
    """Files that are looked at while a server runs."""

    files: Reloaded[Any]
    expires: Callable[[], float | None] = lambda: None
    """When the certificate among them expires, in seconds since 1970; None without one."""
    changed: Callable[[], None] = lambda: None
    """Called on the event loop when there is another value."""


class SecurityMetrics:
    """What files were taken up, and until when certificates are good."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reloads = Counter(
            "mach_file_reloads",
            "Certificate and token files read anew since the start, by outcome: ok or failed.",
            ("file", "outcome"),
            registry=registry,
        )
        self.expiry = Gauge(
            "mach_tls_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires, in seconds since 1970.",
            ("file",),
            registry=registry,
        )


class Security:
    """Certificates and tokens of one server process."""

    def __init__(
        self,
        settings: ServingSettings,
        registry: CollectorRegistry,
        *,
        scopes: dict[str, Scope],
        open_services: Collection[str],
        watched: Iterable[Watched] = (),
    ) -> None:
        """Read the files.

        Args:
            settings: which.
            registry: where reloads are counted.
            scopes: what a service's callers need, by its full name.
            open_services: services that need no token.
            watched: further files to watch.

        Raises:
            ConfigError: if a file cannot be used.
        """
        self._seconds = settings.reload_seconds
        self._metrics = SecurityMetrics(registry)
        self._watched = list(watched)
        self._tls: ServerTls | None = None
        self.interceptors: list[grpc.aio.ServerInterceptor] = []
        if settings.tls_certificate is not None and settings.tls_key is not None:
            tls = self._tls = ServerTls(
                settings.tls_certificate, settings.tls_key, settings.tls_client_ca
            )
            self._watched.append(Watched(tls.files, lambda: tls.files.value.pair.expires))
        self._interceptor: TokenInterceptor | None = None
        if settings.tokens is not None:
            tokens = TokenGuard(settings.tokens, registry)
            self._watched.append(Watched(tokens.files, changed=tokens.reloaded))
            self._interceptor = TokenInterceptor(tokens, open_services=open_services, scopes=scopes)
            self.interceptors.append(self._interceptor)
            if self._tls is None:
                _logger.warning(
                    "tokens travel in plain text: give --tls-certificate, unless something in "
                    "front of this server encrypts"
                )
        for one in self._watched:
            for outcome in ("ok", "failed"):
                self._metrics.reloads.labels(one.files.name, outcome)
            self._show_expiry(one)

    def credentials(self) -> grpc.ServerCredentials | None:
        """For one port; None for plain text."""
        return None if self._tls is None else self._tls.credentials()

    def _show_expiry(self, one: Watched) -> None:
        expires = one.expires()
        if expires is not None:
            self._metrics.expiry.labels(one.files.name).set(expires)

    async def watch(self) -> None:
        """Take up files that change, until cancelled; returns where there are none."""
        while self._watched:
            await asyncio.sleep(self._seconds)
            for one in self._watched:
                await self._look(one)
            if self._interceptor is not None:  # each time: tokens expire too
                try:
                    await self._interceptor.end_streams()
                except Exception:  # a defect of ours must not be the last time that we looked
                    _logger.exception("streams of tokens that expired may go on")

    async def _look(self, one: Watched) -> None:
        name = one.files.name
        try:
            # On a thread: a volume that hangs must not stop the event loop.
            changed = await asyncio.to_thread(one.files.check)
            if changed:
                one.changed()
                self._show_expiry(one)
        except UserError as error:
            self._metrics.reloads.labels(name, "failed").inc()
            _logger.error("changed files were not taken up, those before stay in use: %s", error)
            return
        except Exception:
            self._metrics.reloads.labels(name, "failed").inc()
            _logger.exception("changed files were not taken up, those before stay in use")
            return
        if changed:
            self._metrics.reloads.labels(name, "ok").inc()
            _logger.info("changed files were taken up", extra={"file": name})

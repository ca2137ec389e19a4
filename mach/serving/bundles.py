"""The bundles a server holds: the active one, and another on standby."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge

from mach.errors import (
    InvalidInput,
    Unavailable,
    UserError,
    VersionMismatch,
    VersionNotFound,
)

if TYPE_CHECKING:
    from mach.bundle import Bundle

__all__ = ["BundleHost", "Held"]

_logger = logging.getLogger(__name__)


class Held(Protocol):
    """What a server makes of a bundle: a shard its sessions, an aggregator its index."""

    @property
    def bundle(self) -> Bundle:
        """The bundle on disk."""


T = TypeVar("T", bound=Held)


class BundleHost(Generic[T]):
    """Loads bundles and switches between them.

    Each request keeps what :meth:`get` gave it to its end, so a switch never mixes versions in
    one answer, and what is unloaded lives until the last request is through with it. Two are in
    memory at most, such requests apart: what is on standby goes before another is loaded.
    All methods are called on the event loop.
    """

    def __init__(
        self,
        open_bundle: Callable[[Path], Bundle],
        load: Callable[[Bundle], T],
        registry: CollectorRegistry,
        *,
        root: Path,
        on_change: Callable[[T | None, T | None], None] = lambda active, standby: None,
        before_activate: Callable[[T], Awaitable[None]] | None = None,
    ) -> None:
        """Start with none loaded.

        Args:
            open_bundle: reads the manifest; called on a thread.
            load: verifies, loads and warms up; called on a thread.
            registry: where loads are counted.
            root: :meth:`load` refuses bundles outside this directory.
            on_change: called with what is active and on standby, after each change.
            before_activate: called by :meth:`prepare` with what is to be activated; raises
                a ``MachError`` where the rest of the fleet is not ready for it.
        """
        self._open = open_bundle
        self._load = load
        self._root = root
        self._on_change = on_change
        self._before_activate = before_activate
        self._active: T | None = None
        self._standby: T | None = None
        self._loading = asyncio.Lock()
        self._tasks: set[asyncio.Task[T]] = set()
        self._loads = Counter(
            "mach_bundle_loads",
            "Bundles loaded or refused since the start, by outcome: ok or failed.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("ok", "failed"):
            self._loads.labels(outcome)
        self._load_seconds = Gauge(
            "mach_bundle_load_seconds",
            "Time that the latest load took: verifying, loading and warming up.",
            registry=registry,
        )

    @property
    def active(self) -> T:
        """What answers requests that name no version.

        Raises:
            Unavailable: while none is loaded.
        """
        if self._active is None:
            raise Unavailable("the bundle is still being loaded")
        return self._active

    @property
    def standby(self) -> T | None:
        """The other one, if any."""
        return self._standby

    @property
    def versions(self) -> list[str]:
        """All that are loaded, the active one first."""
        return [held.bundle.version for held in (self._active, self._standby) if held is not None]

    def get(self, version: str) -> T:
        """What answers a request that names ``version``, or none ("").

        Raises:
            VersionMismatch: if it is not loaded.
            Unavailable: while none is loaded.
        """
        active = self.active
        if not version or version == active.bundle.version:
            return active
        if self._standby is not None and version == self._standby.bundle.version:
            return self._standby
        raise VersionMismatch(
            f"bundle_version: {version[:80]} is not loaded here, but {' and '.join(self.versions)}"
        )

    async def load_first(self, path: Path) -> T:
        """Load what the server starts with, from anywhere, and make it active.

        Raises:
            UserError: whatever stops it.
        """
        held = await self._timed_load(path, "")
        self._set(held, self._standby)
        return held

    async def load(self, path: str, version: str = "") -> T:
        """Load the bundle at ``path`` beside the active one, if it is not loaded already.

        What is on standby makes room for it, once its manifest was read, and is lost even where
        the rest of it cannot be loaded. A caller that gives up stops nothing: a thread cannot be
        stopped, so the load goes on to its end, and the next one waits for it.

        Raises:
            InvalidInput: if the path is outside the root.
            VersionMismatch: if ``version`` is given and the bundle is another.
            UserError: whatever else stops it; the active bundle goes on serving.
        """
        root = self._root.resolve()
        try:
            where = (root / path).resolve()
        except (ValueError, OSError, RuntimeError) as error:  # a NUL, or links in a circle
            raise InvalidInput("path", f"cannot be followed: {error}") from error
        if not path or not where.is_relative_to(root):
            raise InvalidInput("path", f"must name a bundle within {root}")
        self.active  # noqa: B018 - Unavailable while the server starts
        # Only what has its turn outlives its caller: what waits for one is given up with it.
        await self._loading.acquire()
        task = asyncio.create_task(self._load_and_release(where, version))
        self._tasks.add(task)  # the event loop itself keeps none alive
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)  # it keeps what it loaded
        if not task.cancelled():
            task.exception()  # nobody may be waiting for it any more; it was logged

    async def _load_and_release(self, path: Path, version: str) -> T:
        try:
            held = await self._timed_load(path, version)
            if held is not self._active and held is not self._standby:
                self._set(self._active, held)
            return held
        except UserError as error:
            _logger.error("a bundle could not be loaded: %s", error)
            raise
        except Exception:
            _logger.exception("a bundle could not be loaded")
            raise
        finally:
            self._loading.release()

    async def _timed_load(self, path: Path, version: str) -> T:
        start = time.monotonic()
        try:
            bundle = await asyncio.to_thread(self._open, path)
            if version and version != bundle.version:
                raise VersionMismatch(f"{path} is version {bundle.version}, not {version[:80]}")
            for held in (self._active, self._standby):
                if held is not None and held.bundle.version == bundle.version:
                    return held
            held = None  # else this would keep the one on standby
            self._drop_standby()
            held = await asyncio.to_thread(self._load, bundle)
        except Exception:
            self._loads.labels("failed").inc()
            raise
        seconds = time.monotonic() - start
        self._loads.labels("ok").inc()
        self._load_seconds.set(seconds)
        _logger.info(
            "bundle loaded",
            extra={"bundle_version": bundle.version, "seconds": round(seconds, 3)},
        )
        return held

    async def prepare(self, version: str) -> None:
        """Make sure that a loaded bundle can be activated.

        Raises:
            VersionNotFound: if it is not loaded.
            MachError: what ``before_activate`` raises.
        """
        held = self._find(version)
        if held is not self._active and self._before_activate is not None:
            await self._before_activate(held)

    def activate(self, version: str) -> str:
        """Make a loaded bundle the active one; returns the version that was active before.

        Raises:
            VersionNotFound: if it is not loaded.
        """
        previous = self.active
        if version != previous.bundle.version:
            self._set(self._find(version), previous)
            _logger.info("bundle is active", extra={"bundle_version": version})
        return previous.bundle.version

    def unload(self, version: str) -> None:
        """Drop the bundle on standby.

        Raises:
            InvalidInput: if it is the active one.
            VersionNotFound: if it is not loaded.
        """
        if self._find(version) is self._active:
            raise InvalidInput("bundle_version", "it is active; activate another one first")
        self._drop_standby()

    def _drop_standby(self) -> None:
        if self._standby is not None:
            version = self._standby.bundle.version
            self._set(self._active, None)
            _logger.info("bundle unloaded", extra={"bundle_version": version})

    def _find(self, version: str) -> T:
        for held in (self._active, self._standby):
            if held is not None and held.bundle.version == version:
                return held
        raise VersionNotFound(f"bundle_version: {version[:80]!r} is not loaded here")

    def _set(self, active: T | None, standby: T | None) -> None:
        self._active, self._standby = active, standby
        self._on_change(active, standby)

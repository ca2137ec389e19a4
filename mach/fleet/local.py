"""The fleet itself: which processes there are, and what happens when one dies."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from mach.bundle import Bundle
from mach.errors import ConfigError, InvalidInput, MachError, Unavailable
from mach.fleet.process import ServerProcess, ServerState
from mach.fleet.switching import AdminPort, FleetAdmin

__all__ = ["FleetStatus", "LocalFleet"]

_logger = logging.getLogger(__name__)
_CHECK_SECONDS = 0.25
_LONGEST_PAUSE = 10.0
_WELL_SECONDS = 60.0  # a server that has run for so long is restarted at once again


class _Stopping(Exception):
    """The fleet is being stopped."""


@dataclass(frozen=True)
class FleetStatus:
    """Every server as last seen, the aggregator first."""

    servers: list[ServerState]

    @property
    def serving(self) -> bool:
        """Whether the aggregator answers searches."""
        return self.servers[0].health == "serving"


class LocalFleet:
    """A bundle's shard servers and an aggregator, each a process of its own on loopback.

    A shard that dies is started again at its address, with a pause that doubles while it
    keeps dying. Use it as a context manager, or call :meth:`start` and :meth:`stop`.

    Args:
        bundle: the bundle to serve.
        num_shards: processes among which the repetitions are divided; one each by default.
        listen: HOST:PORT of the aggregator; port 0 takes a free one.
        threads: of ONNX Runtime in each shard.
        shard_arguments: further flags for every shard server.
        aggregator_arguments: further flags for the aggregator.
        admin: give every server an admin port, through which the bundle can be changed; one that
            dies then is started again with the bundle that the others serve.
        directory: for logs; a temporary one, removed at the end, where not given.
        on_event: called with a sentence for people when something happens.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        num_shards: int | None = None,
        listen: str = "127.0.0.1:0",
        threads: int = 1,
        shard_arguments: Sequence[str] = (),
        aggregator_arguments: Sequence[str] = (),
        admin: bool = False,
        directory: Path | None = None,
        on_event: Callable[[str], None] = lambda message: None,
    ) -> None:
        repetitions = range(bundle.manifest.num_repetitions)
        if num_shards is None:
            num_shards = len(repetitions)
        if not 1 <= num_shards <= len(repetitions):
            raise InvalidInput("shards", f"must be from 1 to {len(repetitions)}, one a repetition")
        self._temporary = None
        if directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="mach-fleet-")
            directory = Path(self._temporary.name)
        self.directory = directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self._on_event = on_event
        self._stopping = threading.Event()
        self._idle = threading.Event()  # the monitor starts nothing any more
        self._ended = threading.Event()  # all servers have
        self._monitor: threading.Thread | None = None
        self._aggregator_arguments = ["--bundle", str(bundle.path), *aggregator_arguments]
        self._listen = listen
        self._admin = "127.0.0.1:0" if admin else None
        self._is_secure = "--tls-certificate" in aggregator_arguments
        self.aggregator: ServerProcess | None = None
        self.shards = [
            ServerProcess(
                f"shard {first}" if first == last else f"shard {first}-{last}",
                "shard_server",
                [
                    *("--bundle", str(bundle.path)),
                    *("--repetition", ",".join(str(r) for r in range(first, last + 1))),
                    *("--threads", str(threads)),
                    *shard_arguments,
                ],
                directory,
                "127.0.0.1:0",
                admin=self._admin,
            )
            for first, last in _ranges(len(repetitions), num_shards)
        ]

    @property
    def address(self) -> str:
        """HOST:PORT to search at."""
        if self.aggregator is None:
            raise Unavailable("the fleet has not been started")
        return self.aggregator.address

    @property
    def admin_ports(self) -> list[AdminPort]:
        """Where the servers take orders; none unless asked for."""
        return [
            AdminPort(server.name, server.admin, is_front, is_front and self._is_secure)
            for server in self._servers()
            for is_front in [server is self.aggregator]
            if server.admin is not None
        ]

    def start(self, timeout: float = 600.0, *, check: Callable[[], None] = lambda: None) -> None:
        """Start every process and wait until the aggregator serves.

        Call it on a thread that lives until :meth:`stop`: Linux tells a child to end when the
        thread that started it does.

        Args:
            timeout: seconds for all of it; the first start on a machine compiles for a while.
            check: called all the while; what it raises ends the start, and every process.

        Raises:
            ConfigError: if a server does not start; the message is its own.
            Unavailable: if the fleet does not serve within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        try:
            for shard in self.shards:
                check()
                shard.start()
            for shard in self.shards:
                shard.wait_bound(deadline, check)
            self.aggregator = ServerProcess(
                "aggregator",
                "aggregator",
                [
                    *self._aggregator_arguments,
                    *("--shards", ",".join(shard.address for shard in self.shards)),
                ],
                self.directory,
                self._listen,
                admin=self._admin,
            )
            self.aggregator.start()
            self.aggregator.wait_bound(deadline, check)
            self._wait_serving(deadline, check)
        except BaseException:
            self.stop(drain_seconds=2.0)
            raise
        self._monitor = threading.Thread(target=self._watch, name="fleet-monitor", daemon=True)
        self._monitor.start()

    def _servers(self) -> list[ServerProcess]:
        return [*([self.aggregator] if self.aggregator else []), *self.shards]

    def _wait_serving(self, deadline: float, check: Callable[[], None]) -> None:
        for server in [*self.shards, *([self.aggregator] if self.aggregator else [])]:
            while server.health() != "serving":
                check()
                if server.pid is None:
                    raise ConfigError(f"{server.name} did not start: {server.last_words()}")
                if time.monotonic() > deadline:
                    raise Unavailable(f"{server.name} is not ready: {server.last_words()}")
                time.sleep(0.05)

    def _watch(self) -> None:
        try:
            self._restart_what_dies()
        finally:
            self._idle.set()
        # The servers that this thread started again would be told to end with it, a second time
        # where they drain already, which cancels what they still answer.
        self._ended.wait()

    def _restart_what_dies(self) -> None:
        pauses: dict[str, float] = {}
        due: dict[str, float] = {}
        running: dict[str, float] = {}  # since when
        while not self._stopping.wait(_CHECK_SECONDS):
            for server in self._servers():
                if server.pid is not None:
                    continue
                now = time.monotonic()
                if server.name not in due:
                    was_well = now - running.get(server.name, now) > _WELL_SECONDS
                    pause = 0.0 if was_well else pauses.get(server.name, 0.0)
                    pauses[server.name] = min(_LONGEST_PAUSE, max(0.5, pause * 2))
                    due[server.name] = now + pause
                    self._say(f"{server.name} died ({server.last_words()}); restarting it")
                elif now >= due[server.name]:
                    del due[server.name]
                    self._restart(server)
                    running[server.name] = time.monotonic()

    def _restart(self, server: ServerProcess) -> None:
        try:
            server.bundle = self._active_bundle() or server.bundle
            server.restart()
            server.wait_bound(time.monotonic() + 30, self._stop_waiting)
            self._say(f"{server.name} runs again at {server.address}")
        except _Stopping:
            pass
        except MachError as error:
            self._say(str(error))
        except OSError as error:  # no process, memory or file to be had: perhaps the next time
            self._say(f"{server.name} cannot be started: {error.strerror or error}")

    def _say(self, message: str) -> None:
        """Tell of it; what cannot be told is no reason to watch no longer."""
        try:
            self._on_event(message)
        except Exception:
            _logger.exception("could not tell that %s", message)

    def _stop_waiting(self) -> None:
        if self._stopping.is_set():
            raise _Stopping

    def _active_bundle(self) -> Path | None:
        """What the shards that run serve by now; None where nobody says."""
        for port in self.admin_ports:
            if not port.is_aggregator:  # which may ask for a token
                with suppress(MachError):
                    for bundle in FleetAdmin([port], timeout=2.0).loaded()[port.name]:
                        if bundle.active:
                            return Path(bundle.path)
        return None

    def status(self) -> FleetStatus:
        """Ask every server for its health."""
        return FleetStatus([server.state() for server in self._servers()])

    def stop(self, drain_seconds: float = 20.0) -> None:
        """End every process, the aggregator first, each with time to finish what it has."""
        self._stopping.set()
        if self._monitor is not None:
            self._idle.wait()
        deadline = time.monotonic() + drain_seconds
        if self.aggregator is not None:
            self.aggregator.stop(deadline)
        for shard in self.shards:
            shard.signal_stop()
        for shard in self.shards:
            shard.stop(deadline)
        self._ended.set()
        if self._monitor is not None:
            self._monitor.join()
            self._monitor = None
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> LocalFleet:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _ranges(total: int, parts: int) -> list[tuple[int, int]]:
    """Cut 0..total-1 into ``parts`` runs of nearly equal length, as (first, last)."""
    edges = [total * part // parts for part in range(parts + 1)]
    return [(first, last - 1) for first, last in pairwise(edges)]

"""Several processes of one server on one port: each takes some of the connections."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from mach.errors import ConfigError
from mach.processes import end_with_parent
from mach.serving.binding import reason_of, write_ready_file
from mach.serving.settings import ServingSettings, split_address

__all__ = ["run_workers"]

_logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_LONGEST_PAUSE = 10.0
_LAST_PORT = 65535
#: Beyond ``drain_seconds``, before a worker that should have ended is killed.
_GRACE_SECONDS = 10.0

#: Serves in this process with some settings, the port shared; returns the exit code.
Run = Callable[[Any], int]


def run_workers(settings: ServingSettings, run: Run, count: int) -> int:
    """Run ``count`` processes until SIGTERM or SIGINT, which all of them get; the exit code.

    A worker that dies is started again, after a pause that doubles while it keeps dying. One
    that ends by itself with a code other than 0 before all have started ends the others. The
    metrics, admin and health ports of worker i are i above those given.

    Args:
        settings: of every worker.
        run: serves in a worker; importable by its name.
        count: how many.

    Raises:
        ConfigError: if an address cannot be had or the ready file not be written; no worker
            is left then.
    """
    return _Workers(settings, run, count).run()


def _above(address: str | None, number: int) -> str | None:
    """The address of worker ``number``: ports side by side, or any free ones."""
    if address is None or not number:
        return address
    if address.startswith("unix:"):
        return f"{address}.{number}"
    port = split_address(address)[1]
    return f"{address.rpartition(':')[0]}:{port + number if port else 0}"


def _check_ports(settings: ServingSettings, count: int) -> None:
    """Refuse ports the last of which would be none, before anything is started."""
    for flag, address in (
        ("--metrics-listen", settings.metrics_listen),
        ("--admin-listen", settings.admin_listen),
        ("--health-listen", settings.health_listen),
    ):
        if address is None or address.startswith("unix:"):
            continue
        port = split_address(address)[1]
        if port and port + count - 1 > _LAST_PORT:
            raise ConfigError(
                f"{flag} {address}: {count} workers need the ports {port} to {port + count - 1}, "
                f"and {_LAST_PORT} is the last one"
            )


def _reserve(address: str) -> tuple[socket.socket, str]:
    """Hold a port that workers will share: bound, not listening, so that it gets no connection."""
    if address.startswith("unix:"):
        raise ConfigError(f"--listen {address}: several workers need HOST:PORT")
    host, port = split_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if port:  # another fleet that shares its port would share it with this one, unnoticed
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
                probe.listen()
        held = socket.socket(family, kind, protocol)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(where)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--listen {address}: {reason_of(error)}") from error
    return held, f"{address.rpartition(':')[0]}:{held.getsockname()[1]}"


def _work(settings: ServingSettings, run: Run, parent: int) -> None:
    end_with_parent(parent)
    os.setsid()  # Ctrl-C reaches the parent, which tells its workers once
    sys.exit(run(settings))


class _Workers:
    def __init__(self, settings: ServingSettings, run: Run, count: int) -> None:
        self._settings = settings
        self._run = run
        self._count = count
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[SpawnProcess] = []
        self._signals = 0
        self._stopping_since = 0.0
        self._starting = False
        self._untold = False  # whether a signal came while a worker was being started

    def run(self) -> int:
        """See :func:`run_workers`."""
        _check_ports(self._settings, self._count)
        held, address = _reserve(self._settings.listen)
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            with held, tempfile.TemporaryDirectory(prefix="mach-workers-") as folder:
                self._ready_files = [Path(folder) / f"{n}.json" for n in range(self._count)]
                self._each = [
                    self._settings.model_copy(
                        update={
                            "listen": address,
                            "metrics_listen": _above(self._settings.metrics_listen, number),
                            "admin_listen": _above(self._settings.admin_listen, number),
                            "health_listen": _above(self._settings.health_listen, number),
                            "ready_file": self._ready_files[number],
                        }
                    )
                    for number in range(self._count)
                ]
                try:
                    for number in range(self._count):
                        self._start(number)
                    return self._watch()
                except BaseException:
                    # Else the interpreter would wait at its end for workers that go on serving.
                    if not self._signals:
                        self._stopping_since = time.monotonic()
                        self._tell(signal.SIGTERM)
                    self._stop()
                    raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, number: int) -> None:
        """Start worker ``number``, also anew; none after a signal, which all that started get."""
        self._starting = True
        try:
            if not self._signals:
                process = self._context.Process(
                    target=_work,
                    args=(self._each[number], self._run, os.getpid()),
                    name=f"worker {number}",
                )
                process.start()
                self._processes[number : number + 1] = [process]
        finally:
            self._starting = False
        if self._untold:
            self._untold = False
            self._tell(signal.SIGTERM)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1
        self._stopping_since = self._stopping_since or time.monotonic()
        if self._starting:
            self._untold = True
        else:
            self._tell(signal.SIGTERM)

    def _tell(self, number: int) -> None:
        for process in self._processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def _watch(self) -> int:
        announced = False
        pauses = [0.0] * self._count
        due: dict[int, float] = {}
        while True:
            wait([process.sentinel for process in self._processes], timeout=_POLL_SECONDS)
            if due:  # what has ended is always ready to be waited for
                time.sleep(_POLL_SECONDS)
            if self._signals:
                return self._stop()
            if not announced and all(file.exists() for file in self._ready_files):
                announced = True
                self._announce()
            for number, process in enumerate(self._processes):
                if process.is_alive():
                    continue
                if not announced:
                    return self._give_up(process.exitcode or 1)
                now = time.monotonic()
                if number not in due:
                    _logger.error("worker %d ended with %s", number, process.exitcode)
                    due[number] = now + pauses[number]
                    pauses[number] = min(_LONGEST_PAUSE, max(0.5, 2 * pauses[number]))
                elif now >= due[number]:
                    del due[number]
                    self._start_anew(number)

    def _start_anew(self, number: int) -> None:
        """Start one that died; where the system cannot, it counts as dead and is due again."""
        try:
            self._start(number)
        except OSError as error:
            _logger.error("worker %d could not be started: %s", number, error.strerror or error)

    def _announce(self) -> None:
        bound = [json.loads(file.read_text()) for file in self._ready_files]
        _logger.info("%d workers share %s", self._count, bound[0]["listen"])
        if self._settings.ready_file is not None:
            first = {name: value for name, value in bound[0].items() if name != "pid"}
            write_ready_file(self._settings.ready_file, first, workers=bound)

    def _stop(self) -> int:
        """Wait for all to drain; what they could not end in time is killed."""
        end = self._stopping_since + self._settings.drain_seconds + _GRACE_SECONDS
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
        # What had not come so far as to drain was ended by the signal, which is no failure.
        return self._reap(max([0, *(process.exitcode or 0 for process in self._processes)]))

    def _give_up(self, code: int) -> int:
        self._tell(signal.SIGTERM)
        for process in self._processes:
            process.join(_GRACE_SECONDS)
        return self._reap(code if code > 0 else 1)

    def _reap(self, code: int) -> int:
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join()
                code = 1
        return code

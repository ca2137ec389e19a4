"""One server as a child process: started, watched, restarted at the same address, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mach.direct import DIRECT
from mach.errors import ConfigError, Unavailable

__all__ = ["ServerProcess", "ServerState"]


@dataclass(frozen=True)
class ServerState:
    """A server as last seen.

    Attributes:
        name: ``aggregator``, or ``shard`` and its repetitions.
        address: HOST:PORT of its gRPC port.
        metrics: HOST:PORT of its metrics port.
        pid: of the running process, or None.
        health: ``serving``, ``not serving`` or ``down``.
        restarts: how often it was started again.
    """

    name: str
    address: str
    metrics: str
    pid: int | None
    health: str
    restarts: int


def server_environment() -> dict[str, str]:
    """This process's environment, and glibc told to ask for huge pages unless it is told otherwise.

    Every query reads megabytes of weights. With pages of 4 KiB that misses the translation buffer,
    which costs a fifth of the time of inference on a virtual machine.
    """
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}


class ServerProcess:
    """A server run as ``python -m MODULE``; it keeps its addresses when it is restarted.

    Attributes:
        address: HOST:PORT of its gRPC port, once it is bound.
        metrics: HOST:PORT of its metrics port.
        admin: HOST:PORT of its admin port, if it has one.
        bundle: another bundle to start with than the arguments say, if not None.
        probed: HOST:PORT of where its health is asked for: of a port of its own under TLS.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        directory: Path,
        listen: str,
        *,
        admin: str | None = None,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.address = listen
        self.metrics = "127.0.0.1:0"
        self.admin = admin
        self.probed: str | None = None
        self._has_tls = "--tls-certificate" in arguments
        self.log_path = directory / f"{name.replace(' ', '-')}.log"
        self.bundle: Path | None = None
        self._command = [sys.executable, "-m", "mach.fleet.child", module, *arguments]
        # Of this object alone: another fleet may keep its logs in the same directory.
        self._ready_file = directory / f"{name.replace(' ', '-')}.{uuid4().hex[:8]}.ready.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._channel: grpc.Channel | None = None
        self._told = False  # whether this process was asked to end

    @property
    def pid(self) -> int | None:
        """Of the running process, or None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process; :meth:`wait_bound` then learns its addresses."""
        self._ready_file.unlink(missing_ok=True)
        if self._log is None:
            self._log = self.log_path.open("ab")
        self._process = subprocess.Popen(
            [
                *self._command,
                *("--listen", self.address),
                *("--metrics-listen", self.metrics),
                *("--ready-file", str(self._ready_file)),
                *(("--admin-listen", self.admin) if self.admin else ()),
                *(("--bundle", str(self.bundle)) if self.bundle else ()),
                *(("--health-listen", self.probed or "127.0.0.1:0") if self._has_tls else ()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=server_environment(),
            # Ctrl-C reaches the supervisor, which stops all in order. No session of its own: Linux
            # would give every session an equal share of the CPUs, an aggregator that all others
            # wait for no more than each of many shards.
            process_group=0,
        )
        self._told = False

    def restart(self) -> None:
        """Start it again at the addresses it had."""
        self.start()
        self.restarts += 1

    def wait_bound(self, deadline: float, check: Callable[[], None] = lambda: None) -> None:
        """Wait until its ports are open.

        Args:
            deadline: on the clock of ``time.monotonic``.
            check: called all the while; what it raises ends the wait.

        Raises:
            ConfigError: if it ends first; the message is what the server said.
            Unavailable: if the deadline passes.
        """
        while not self._ready_file.exists():
            check()
            if self.pid is None:
                raise ConfigError(f"{self.name} did not start: {self.last_words()}")
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.name} did not open its ports in time")
            time.sleep(0.02)
        bound = json.loads(self._ready_file.read_text())
        self.address, self.metrics = bound["listen"], bound["metrics"]
        self.admin = bound.get("admin")
        self.probed = bound.get("health")

    def last_words(self) -> str:
        """The signal that killed it, or the last line it wrote."""
        try:
            lines = self.log_path.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        said = lines[-1] if lines else "it wrote nothing"
        status = self._process.poll() if self._process else None
        if status is not None and status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return said

    def health(self, timeout: float = 1.0) -> str:
        """``serving``, ``not serving`` or ``down``, by the standard health service."""
        if self.pid is None:
            return "down"
        if self._channel is None:
            self._channel = grpc.insecure_channel(self.probed or self.address, options=DIRECT)
        check = health_pb2_grpc.HealthStub(self._channel).Check
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return "not serving"
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return "serving" if serving else "not serving"

    def state(self) -> ServerState:
        """What it is doing now."""
        return ServerState(
            self.name, self.address, self.metrics, self.pid, self.health(), self.restarts
        )

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self._process and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def signal_stop(self) -> None:
        """Ask it to drain and end, without waiting; once, for a second signal ends a drain."""
        if not self._told:
            self._told = True
            self.signal(signal.SIGCONT)  # a stopped process would not see the next one
            self.signal(signal.SIGTERM)

    def stop(self, deadline: float) -> None:
        """End it: SIGTERM (it drains), then SIGKILL at ``deadline`` (``time.monotonic``)."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self.signal_stop()
            try:
                self._process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None
        self._ready_file.unlink(missing_ok=True)

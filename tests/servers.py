"""Real server processes for tests: started on free ports of 127.0.0.1, always stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import urlopen

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent


class ServerProcess:
    """A server on a free port; ``with ServerProcess("-m", "shard_server", "--bundle", …) as s``.

    Attributes:
        address: HOST:PORT of gRPC.
        metrics_address: HOST:PORT of its metrics.
        admin_address: of its admin service, where ``--admin-listen`` was given.
        health_address: of its health alone, where ``--health-listen`` was given.
        ready: all that its ready file says.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        serving: bool = True,
        listen: str = "127.0.0.1:0",
    ) -> None:
        """Describe it: what follows ``python``, and whether to wait for SERVING."""
        self._listen = listen
        self._arguments = arguments
        self._directory = tempfile.TemporaryDirectory()
        # What a killed server could not remove goes with the directory.
        own = {"PYTHONPATH": str(ROOT), "TMPDIR": self._directory.name}
        self._env = {**os.environ, **own, **(env or {})}
        self._wait_for_serving = serving
        self._stderr = Path(self._directory.name) / "stderr"
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.metrics_address = ""
        self.admin_address = ""
        self.health_address = ""
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> ServerProcess:
        ready = Path(self._directory.name) / "ready.json"
        command = [
            sys.executable, *self._arguments, "--ready-file", str(ready),
            "--listen", self._listen, "--metrics-listen", "127.0.0.1:0",
        ]  # fmt: skip
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(command, stderr=stderr, env=self._env, cwd=ROOT)
        try:
            wait_until(lambda: ready.exists() or self._process.poll() is not None, "the port", 60)
            if not ready.exists():
                raise AssertionError(f"exit code {self._process.returncode}: {self.stderr}")
            addresses = self.ready = json.loads(ready.read_text())
            assert addresses["pid"] == self._process.pid
            self.address, self.metrics_address = addresses["listen"], addresses["metrics"]
            self.admin_address = addresses["admin"] or ""
            self.health_address = addresses["health"] or ""
            if self._wait_for_serving:
                wait_until(lambda: self.health() == "SERVING", "SERVING", 60)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")  # gRPC logs what peers send

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 20) -> int:
        """The exit code, once it ends."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM, then the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address)

    def health(self, service: str = "") -> str:
        """SERVING, NOT_SERVING, or the status code of a failed check.

        Asked over the port for health alone, where ``--health-listen`` was given.
        """
        with grpc.insecure_channel(self.health_address or self.address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=2
                )
            except grpc.RpcError as error:
                return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics: ``name{labels}`` to value."""
        with urlopen(f"http://{self.metrics_address}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


def run_server(
    arguments: Sequence[str], env: Mapping[str, str] | None = None, seconds: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def wait_until(
    condition: Any, what: str = "it did not happen in time", seconds: float = 20
) -> None:
    """Poll ``condition``; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


def assert_one_sentence(result: subprocess.CompletedProcess[str], *fragments: str) -> None:
    """Exit code 2, one line on stderr with all fragments, no traceback."""
    assert result.returncode == 2, result
    lines = [line for line in result.stderr.splitlines() if " INFO " not in line]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for fragment in fragments:
        assert fragment in lines[0]

"""A Prometheus beside a local fleet, with the alert rules that a cluster would have."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from mach.direct import open_url
from mach.errors import ConfigError, Unavailable
from mach.fleet.local import LocalFleet
from mach.serving.binding import reason_of
from mach.serving.settings import split_address

__all__ = ["RULES", "LocalPrometheus"]

#: Recording and alerting rules, for Prometheus.
RULES = Path(__file__).with_name("rules.yaml")


class LocalPrometheus:
    """Runs the installed ``prometheus`` program. Use it as a context manager.

    Attributes:
        address: HOST:PORT of its web page and API.
    """

    def __init__(
        self,
        fleet: LocalFleet,
        directory: Path,
        *,
        listen: str = "127.0.0.1:0",
        rules: Sequence[Path] = (RULES,),
        scrape_seconds: int = 5,
    ) -> None:
        """Prepare to watch a fleet that runs.

        Args:
            fleet: its servers keep their addresses for as long as it runs.
            directory: for its configuration, data and log; made where missing.
            listen: HOST:PORT; port 0 takes a free one.
            rules: files of rules.
            scrape_seconds: how often metrics are read and rules evaluated.

        Raises:
            ConfigError: if there is no such program, or ``listen`` is no address or not to be had.
        """
        program = shutil.which("prometheus")
        if program is None:
            raise ConfigError("monitoring: the program prometheus is not installed")
        try:
            host, port = split_address(listen)
        except ValueError as error:
            raise ConfigError(f"monitoring: {error}") from error
        try:
            self.address = f"{listen.rpartition(':')[0]}:{port or _free_port(host)}"
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"monitoring: {listen}: {reason_of(error)}") from error
        self._directory = directory
        self._config = {
            "global": {
                "scrape_interval": f"{scrape_seconds}s",
                "evaluation_interval": f"{scrape_seconds}s",
            },
            "rule_files": [str(path.resolve()) for path in rules],
            "scrape_configs": [
                {
                    "job_name": "mach",
                    "static_configs": [
                        {
                            "targets": [server.metrics],
                            "labels": {"namespace": "local", "server": server.name},
                        }
                        for server in fleet.status().servers
                    ],
                }
            ],
        }
        self._command = [
            program,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            "--storage.tsdb.retention.time=7d",
            f"--web.listen-address={self.address}",
            "--enable-feature=exemplar-storage",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 30.0, *, check: Callable[[], None] = lambda: None) -> None:
        """Start it and wait until it answers.

        Args:
            timeout: seconds.
            check: called all the while; what it raises ends the wait, and :meth:`stop` is due.

        Raises:
            Unavailable: if it does not; the message is the last line that it wrote.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        # Prometheus reads YAML, of which JSON is a part.
        (self._directory / "prometheus.yml").write_text(json.dumps(self._config, indent=2))
        log = self._directory / "prometheus.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C reaches the supervisor, which stops all in order
            )
        deadline = time.monotonic() + timeout
        # Ended first: whatever answers at its address then is another's.
        while (ended := self._process.poll() is not None) or not self._ready():
            if ended or time.monotonic() > deadline:
                self.stop()
                lines = log.read_text(errors="replace").splitlines() or ["it wrote nothing"]
                raise Unavailable(f"prometheus did not start: {lines[-1]}")
            check()
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with open_url(f"http://{self.address}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            return False

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> LocalPrometheus:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _free_port(host: str) -> int:
    """A port that is free now; another process may take it before Prometheus does."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port

"""The same models behind MLServer and mosec: ``python -m benchmarks.fleet.peers``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.accuracy.environments import EnvironmentFailed, Environments
from benchmarks.fleet.load import CONCURRENCY, closed_loop, running_fleet
from benchmarks.fleet.options import Setup, median, say
from benchmarks.fleet.plain import plain_aggregator
from benchmarks.fleet.report import Goal, Report, Table, main
from mach.bundle import repetition_file
from mach.client import MachClient
from mach.errors import ConfigError, MachError, Unavailable
from mach.evaluation import LocalPipeline

TITLE = "The same models behind MLServer and mosec"
PEERS = ("mlserver", "mosec")
_HERE = Path(__file__).parent
_MAX_BATCH_SIZE = 64
_MAX_WAIT_MS = 2
_SECONDS_TO_START = 240.0


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listened on a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _mlserver(python: Path, model: Path, folder: Path) -> tuple[list[str], dict[str, str], str]:
    grpc_port, http_port, metrics_port = free_ports(3)
    settings = {
        "host": "127.0.0.1",
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "parallel_workers": 0,  # inference in the server's process: nothing to copy between two
        "debug": False,
    }
    model_settings = {
        "name": "repetition",
        "implementation": "mlserver_model.Repetition",
        "max_batch_size": _MAX_BATCH_SIZE,
        "max_batch_time": _MAX_WAIT_MS / 1e3,
        "parameters": {"uri": str(model)},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model_settings))
    for name in ("mlserver_model.py", "rows.py"):
        shutil.copy(_HERE / "peer_servers" / name, folder)
    command = [str(python.parent / "mlserver"), "start", str(folder)]
    # Its access log is a line a request.
    return command, {"MLSERVER_LOGGING_LEVEL": "ERROR"}, f"127.0.0.1:{grpc_port}"


def _mosec(python: Path, model: Path, folder: Path) -> tuple[list[str], dict[str, str], str]:
    (port,) = free_ports(1)
    command = [str(python), str(_HERE / "peer_servers" / "mosec_server.py")]
    command += ["--address", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    command += ["--path", str(folder / "ipc"), "--timeout", "10000"]
    environment = {
        "PEER_MODEL": str(model),
        "PEER_MAX_BATCH_SIZE": str(_MAX_BATCH_SIZE),
        "PEER_MAX_WAIT_MS": str(_MAX_WAIT_MS),
    }
    return command, environment, f"127.0.0.1:{port}"


_COMMANDS = {"mlserver": _mlserver, "mosec": _mosec}


@contextmanager
def peer_servers(setup: Setup, name: str) -> Iterator[list[str]]:
    """One server a repetition; yields their addresses.

    Raises:
        ConfigError: if its environment cannot be made.
    """
    environments = Environments(setup.environments, _HERE / "requirements")
    try:
        python = environments.python(name)
    except EnvironmentFailed as error:
        raise ConfigError(str(error)) from error
    processes: list[subprocess.Popen[bytes]] = []
    addresses = []
    with tempfile.TemporaryDirectory(prefix=f"mach-{name}-") as folder:
        try:
            for repetition in range(setup.bundle.manifest.num_repetitions):
                place = Path(folder) / str(repetition)
                place.mkdir()
                model = setup.path / repetition_file(repetition)
                command, environment, address = _COMMANDS[name](python, model, place)
                with (place / "log").open("wb") as log:
                    processes.append(
                        subprocess.Popen(
                            command,
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=log,
                            cwd=place,
                            env={**os.environ, **environment},
                            process_group=0,  # of our session, as our servers are
                        )
                    )
                addresses.append(address)
            _wait_open(addresses, processes, name)
            yield addresses
        finally:
            _stop(processes)


def _wait_open(
    addresses: Sequence[str], processes: Sequence[subprocess.Popen[bytes]], name: str
) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    for address, process in zip(addresses, processes, strict=True):
        host, _, port = address.rpartition(":")
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Unavailable(f"{name} did not start") from None
                time.sleep(0.1)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End them and what they started: each leads a process group of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue
        for process in processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                continue


def _wait_right(setup: Setup, address: str, name: str) -> None:
    """Until it answers, and then what the models answer."""
    text = setup.texts[0]
    classes = LocalPipeline(setup.bundle).search([text], 10)[0]
    expected = set(setup.bundle.catalog.product_ids(classes.tolist()))
    deadline = time.monotonic() + 60
    with MachClient(address, timeout=10.0) as client:
        while True:
            try:
                found = {product.product_id for product in client.search(text, 10).products}
                break
            except MachError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
    # Ours answer in 8 bits, so the last may differ.
    if len(found & expected) < 0.8 * len(expected):
        raise Unavailable(f"{name} answers something else than the models do")


def run(setup: Setup) -> Report:
    """Measure the fleet, our shards behind the plain aggregator, and the peers behind it."""
    report = Report()
    with ExitStack() as stack:
        fleet = stack.enter_context(running_fleet(setup))
        shards = [shard.address for shard in fleet.shards]
        plain = stack.enter_context(plain_aggregator(setup, shards))
        fronts = {"our fleet": fleet.address, "our shards": plain.address}
        for name in PEERS:
            say(f"  starting {name}")
            addresses = stack.enter_context(peer_servers(setup, name))
            front = stack.enter_context(plain_aggregator(setup, addresses, name))
            fronts[name] = front.address
        for name, address in fronts.items():
            _wait_right(setup, address, name)
        names = list(fronts)
        for number in range(setup.rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                found = closed_loop(fronts[name], setup.texts, setup.seconds)
                say(f"  {name}: {found.qps:.0f}/s, p50 {found.p50_ms:.1f} ms")
                report.rounds.append({"round": number, "system": name, **found.to_json()})

    def of(name: str, figure: str) -> float:
        return median([one[figure] for one in report.rounds if one["system"] == name])

    best = max(PEERS, key=lambda name: of(name, "qps"))
    report.figures = {
        name: {figure: of(name, figure) for figure in ("qps", "p50_ms", "p99_ms", "errors")}
        for name in fronts
    }
    labels = {
        "our fleet": "this project",
        "our shards": "this project's shards, plain fan-out",
        "mlserver": "MLServer, plain fan-out",
        "mosec": "mosec, plain fan-out",
    }
    report.tables.append(
        Table(
            ["", "queries/s", "p50 ms", "p99 ms", "errors"],
            [
                [
                    labels[name],
                    f"{of(name, 'qps'):,.0f}",
                    f"{of(name, 'p50_ms'):.1f}",
                    f"{of(name, 'p99_ms'):.1f}",
                    f"{of(name, 'errors'):.0f}",
                ]
                for name in fronts
            ],
        )
    )
    ratio = of("our fleet", "qps") / of(best, "qps")
    report.figures["ratio"] = ratio
    report.figures["ratio_same_client"] = of("our shards", "qps") / of(best, "qps")
    report.goals.append(Goal(f"queries/s, times {labels[best]}", ratio, 3.0, False))
    report.notes += [
        f"One server process a repetition everywhere, ONNX Runtime with one thread; batching on "
        f"({_MAX_BATCH_SIZE} queries, {_MAX_WAIT_MS} ms); closed loop of {CONCURRENCY} requests. "
        "Each peer stands behind the plain aggregator: one call a repetition and query.",
        f"Behind that same client our shards alone come to "
        f"{report.figures['ratio_same_client']:.2f} times the better peer.",
        "MLServer is spoken to by gRPC and BYTES tensors, mosec by HTTP and raw bytes: the "
        "quickest that each offers.",
    ]
    return report


if __name__ == "__main__":
    main("peers", TITLE, run)

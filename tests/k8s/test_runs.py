"""The chart's own command lines, run here: train, publish, fetch, serve, search, stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mach.client import MachClient
from tests.k8s.checks import Release
from tests.k8s.checks.model import fetch_of, pod_of
from tests.k8s.rendering import ROOT, render

KINDS = ["drill", "lamp", "kettle", "tent", "jacket", "keyboard"]
COLORS = ["red", "green", "blue", "black"]
PROGRAMS = {
    "python": [sys.executable],
    "mach": [sys.executable, "-c", "from mach.cli import main; main()"],
}


class Machine:
    """Runs containers as processes: paths of mounts become directories below a root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, container, pod, **replaced):
        """Start a container; ``replaced`` flags take the place of the chart's."""
        mounts = sorted((m["mountPath"] for m in container["volumeMounts"]), reverse=True)
        program, *arguments = container["args"]
        arguments = [self._local(a, mounts, pod) for a in arguments]
        arguments = [a.replace("$(JOB_COMPLETION_INDEX)", pod) for a in arguments]
        for flag, value in replaced.items():
            name = "--" + flag.replace("_", "-")
            arguments = [a for a in arguments if not a.startswith(f"{name}=")]
            arguments.append(f"{name}={value}")
        words = [*PROGRAMS[program], *arguments]
        if command := container.get("command"):
            words = [*(self._local(a, mounts, pod) for a in command), *words]
        environment = {e["name"]: self._local(e["value"], mounts, pod) for e in container["env"]}
        environment.pop("NUMBA_CACHE_DIR", None)  # what other tests compiled is at hand
        process = subprocess.Popen(
            words,
            env={**os.environ, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, container, pod):
        """Run a container to its end and return what it printed."""
        process = self.start(container, pod)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        return output

    def _local(self, text, mounts, pod):
        for mount in mounts:
            if text.startswith(f"{mount}/") or text == mount or f"={mount}" in text:
                owner = "shared" if mount == "/work" else pod
                directory = self.root / owner / mount.strip("/")
                directory.mkdir(parents=True, exist_ok=True)
                return text.replace(mount, str(directory), 1)
        return text

    def stop(self):
        """SIGTERM to all; returns the exit codes."""
        for process in self.processes:
            process.terminate()
        codes = []
        for process in self.processes:
            try:
                process.communicate(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            codes.append(process.returncode)
        self.processes.clear()
        return codes


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.stop()


def train(machine, store):
    """Run the training Jobs one after another; the bundle's version."""
    log = machine.root / "shared" / "work" / "log.csv"
    log.parent.mkdir(parents=True)
    pairs = [(f"{c} {k}", f"p-{c}-{k}") for c in COLORS for k in KINDS]
    log.write_text("query,product_id\n" + "".join(f"{q},{p}\n" for q, p in pairs * 4))
    objects = render(
        {
            "store": {"url": store},
            "training": {
                "enabled": True,
                "run": "first",
                "repetitions": 2,
                "interactions": ["/work/log.csv"],
                "workVolume": {"emptyDir": {}},
                "flags": {
                    "buckets": 24,
                    "hidden": 32,
                    "epochs": 60,
                    "patience": 0,
                    "learning-rate": 0.02,
                    "validation-fraction": 0,
                    "batch-size": 8,
                },
            },
        }
    )
    jobs = {job["metadata"]["name"]: pod_of(job) for job in objects if job["kind"] == "Job"}
    machine.run(jobs["demo-train-first-prepare"]["containers"][0], "prepare")
    for index in ("1", "0"):
        machine.run(jobs["demo-train-first"]["containers"][0], index)
    collect = jobs["demo-train-first-collect"]
    for _ in range(2):  # a second try of the pod finds the bundle and goes on
        machine.run(collect["initContainers"][0], "collect")
    location = machine.run(collect["containers"][0], "collect").strip()
    assert location.startswith(store)
    return location.rpartition("/")[2]


def wait_for(path, process):
    """The addresses that a server has bound, by what for."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return json.loads(path.read_text())


def ask_health(address, service):
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status


@pytest.mark.timeout(300)
def test_train_publish_fetch_serve_search_stop(machine):
    store = (machine.root / "store").as_uri()
    version = train(machine, store)
    release = Release(
        render(
            {
                "store": {"url": store},
                "bundles": {"blue": {"version": version, "repetitions": 2}},
                "active": "blue",
            }
        )
    )
    machine.processes.clear()
    targets = {}
    for server in release.servers:  # shards first
        pod = server["metadata"]["name"]
        (container,) = pod_of(server)["containers"]
        machine.run(fetch_of(server), pod)
        machine.processes.clear()
    servers = []
    for server in release.servers:
        pod = server["metadata"]["name"]
        (container,) = pod_of(server)["containers"]
        ready = machine.root / f"{pod}.json"
        free = dict.fromkeys(("listen", "metrics_listen", "health_listen"), "127.0.0.1:0")
        replaced = {**free, "ready_file": ready}
        if container["name"] == "aggregator":
            asked = next(a for a in container["args"] if a.startswith("--shards="))
            names = [t.removeprefix("dns:///") for t in asked.removeprefix("--shards=").split(",")]
            replaced["shards"] = ",".join(targets[name.partition(".")[0]] for name in names)
        process = machine.start(container, pod, **replaced)
        bound = wait_for(ready, process)
        targets[pod] = bound["listen"]
        servers.append((bound, container))
    serving = health_pb2.HealthCheckResponse.SERVING
    for bound, container in servers:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            service = container[probe]["grpc"]["service"]
            deadline = time.monotonic() + 60
            while ask_health(bound["health"], service) != serving:
                assert time.monotonic() < deadline, (bound, probe)
                time.sleep(0.05)
    with MachClient(servers[-1][0]["listen"], timeout=10) as client:
        result = client.search("green kettle", k=3)
    assert "p-green-kettle" in [product.product_id for product in result.products]
    assert (result.coverage.answered, result.coverage.total) == (2, 2)
    assert result.bundle_version == version
    running = list(machine.processes)
    assert len(running) == 3
    assert machine.stop() == [0, 0, 0]

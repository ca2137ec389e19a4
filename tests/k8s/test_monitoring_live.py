"""A real Prometheus watches a real fleet: panels have data, and the right alert fires."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from mach.client import MachClient
from mach.errors import ConfigError, MachError, Unavailable
from mach.fleet import FleetStatus, LocalFleet, ServerState
from mach.fleet.prometheus import RULES, LocalPrometheus
from tests.collector import Collector
from tests.k8s.test_dashboard import PANELS
from tests.k8s.test_rules import tool


class Prometheus:
    """Questions to a Prometheus."""

    def __init__(self, address):
        self._url = f"http://{address}/api/v1"

    def _get(self, path):
        with urllib.request.urlopen(f"{self._url}/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def numbers(self, query):
        """The values of a query that are numbers."""
        data = self._get("query?" + urllib.parse.urlencode({"query": query}))
        values = [float(series["value"][1]) for series in data["result"]]
        return [value for value in values if not math.isnan(value)]

    def traces(self, query):
        """Trace ids that are kept as examples."""
        now = time.time()
        asked = {"query": query, "start": now - 300, "end": now}
        data = self._get("query_exemplars?" + urllib.parse.urlencode(asked))
        return {e["labels"]["trace_id"] for series in data for e in series["exemplars"]}

    def firing(self):
        """Alerts that fire, as (name, repetition)."""
        alerts = self._get("alerts")["alerts"]
        return {
            (alert["labels"]["alertname"], alert["labels"].get("repetition"))
            for alert in alerts
            if alert["state"] == "firing"
        }

    def rules_that_fail(self):
        groups = self._get("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) > 20
        return [rule["name"] for rule in rules if rule["health"] not in ("ok", "unknown")]


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)


@pytest.fixture
def quick_rules(tmp_path):
    """The rules, quicker: alerts fire after 3 s, and windows of 5 m are 10 s."""
    text = re.sub(r"for: \w+", "for: 3s", RULES.read_text()).replace("[5m]", "[10s]")
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def collector():
    with Collector() as running:
        yield running


@pytest.fixture
def fleet(tiny_bundle, collector, monkeypatch):
    """A fleet that traces every search."""
    for name, value in collector.environment().items():
        monkeypatch.setenv(name, value)
    with LocalFleet(tiny_bundle) as running:
        yield running


#: What NVIDIA's exporter shows for a GPU that a shard's pod has.
DCGM = "".join(
    f'{name}{{gpu="0",UUID="GPU-0",namespace="local",pod="search-blue-shard-000-1"}} {value}\n'
    for name, value in {
        "DCGM_FI_DEV_GPU_UTIL": 40, "DCGM_FI_DEV_FB_USED": 2000, "DCGM_FI_DEV_FB_FREE": 78000,
        "DCGM_FI_DEV_POWER_USAGE": 120.5,
    }.items()
)  # fmt: skip


@pytest.fixture
def gpu_exporter():
    """HOST:PORT of such an exporter."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(DCGM.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def load(fleet, tiny_bundle):
    """Searches, some twenty a second, for as long as the test runs."""
    titles = [row["title"] for row in tiny_bundle.catalog.rows([1, 50, 100])]
    stop = threading.Event()

    def search():
        with MachClient(fleet.address, timeout=5) as client:
            while not stop.wait(0.05):
                for title in titles:
                    try:
                        client.search(title, k=5)
                    except MachError:
                        continue

    thread = threading.Thread(target=search)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("load")
def test_panels_show_data_and_a_killed_shard_raises_its_alert(
    fleet, quick_rules, collector, gpu_exporter, tmp_path
):
    tool("prometheus")
    directory = tmp_path / "prometheus"
    gpu = ServerState("gpu", "", gpu_exporter, None, "serving", 0)
    watched = SimpleNamespace(status=lambda: FleetStatus([*fleet.status().servers, gpu]))
    with LocalPrometheus(watched, directory, rules=[quick_rules], scrape_seconds=1) as running:
        prometheus = Prometheus(running.address)
        queries = {
            f"{panel['title']}: {target['expr']}": target["expr"]
            .replace("$namespace", "local")
            .replace("$bundle", ".*")
            .replace("${bundle}", ".*")
            .replace("$__rate_interval", "10s")
            for panel in PANELS
            for target in panel["targets"]
        }
        empty = dict(queries)

        def all_have_data():
            for name in [name for name, query in empty.items() if prometheus.numbers(query)]:
                del empty[name]
            return not empty

        wait_until(all_have_data, 60, lambda: f"no data for {list(empty)}")
        assert prometheus.rules_that_fail() == []
        assert prometheus.firing() == set()
        kept = prometheus.traces('{__name__=~"grpc_server_handling_seconds_bucket|mach_.*"}')
        collected = {span.trace_id for span in collector.spans}
        assert len(kept & collected) > 3

        lost = ("MachRepetitionUnavailable", "1")

        def alerts_fire():
            fleet.shards[1].signal(signal.SIGKILL)  # whenever its supervisor started it again
            return {lost, ("MachCoverageLow", None)} <= prometheus.firing()

        wait_until(alerts_fire, 60, lambda: f"firing: {prometheus.firing()}")
        others = {name for name, _ in prometheus.firing()}
        assert others <= {lost[0], "MachCoverageLow", "MachEndpointsEjected"}
        assert {r for name, r in prometheus.firing() if name == lost[0]} == {"1"}
        wait_until(
            lambda: not {lost, ("MachCoverageLow", None)} & prometheus.firing(),
            60,
            lambda: f"still firing: {prometheus.firing()}",
        )


NO_FLEET = SimpleNamespace(status=lambda: FleetStatus([]))


def test_without_the_program_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="the program prometheus is not installed"):
        LocalPrometheus(NO_FLEET, tmp_path)


def test_a_port_in_use_is_told(tmp_path):
    tool("prometheus")
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(Unavailable, match=r"did not start: .*address already in use"),
        LocalPrometheus(NO_FLEET, tmp_path, listen=f"127.0.0.1:{taken.getsockname()[1]}"),
    ):
        pass


def test_a_host_that_is_none_is_told(tmp_path):
    tool("prometheus")
    with pytest.raises(ConfigError, match=r"^monitoring: a\.\.b:0: Name or service not known$"):
        LocalPrometheus(NO_FLEET, tmp_path, listen="a..b:0")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_it_is_asked_directly_whatever_its_host(tmp_path, monkeypatch, host):
    tool("prometheus")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # which knows the proxies of its time
    with LocalPrometheus(NO_FLEET, tmp_path, listen=f"{host}:0") as running:
        assert re.fullmatch(re.escape(host) + r":[1-9]\d*", running.address)


def test_mach_serve_starts_one(tiny_bundle):
    tool("prometheus")
    command = [sys.executable, "-c", "from mach.cli import main; main()", "serve"]
    arguments = [tiny_bundle.path, "--listen", "127.0.0.1:0", "--shards", "1"]
    process = subprocess.Popen(
        [*command, *arguments, "--monitoring", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True
    )
    try:
        said = ""
        while not (match := re.search(r"metrics and alerts at http://(\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        prometheus = Prometheus(match[1])
        wait_until(lambda: prometheus.numbers("up"), 60, lambda: "nothing is scraped")
        assert prometheus.rules_that_fail() == []
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[1]
    assert process.returncode == 0, rest
    with pytest.raises(OSError, match="refused"):
        prometheus.numbers("up")

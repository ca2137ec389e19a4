"""Real servers on loopback: right answers, with everything up and with a shard gone."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from urllib.request import urlopen

import numpy as np
import pytest

from mach.client import MachClient
from mach.errors import InvalidInput, MachError, Unavailable, VersionNotFound
from tests.e2e.reference import Reference
from tests.servers import wait_until


@pytest.fixture(scope="module")
def reference(tiny_bundle):
    return Reference(tiny_bundle)


def queries_of(bundle):
    titles = bundle.catalog.table["title"].to_pylist()
    return [*titles[::9], "red drill", "acme", "nothing known here at all", "red red RED Drill"]


def check(result, expected):
    ids, scores = expected
    assert [product.product_id for product in result.products] == ids
    np.testing.assert_allclose([product.score for product in result.products], scores, rtol=1e-5)


def test_congruence_restriction_and_mistakes(tiny_bundle, client, reference):
    queries = queries_of(tiny_bundle)
    everything = range(tiny_bundle.manifest.num_repetitions)
    expected = [reference.top(query, 12, everything) for query in queries]
    for query, answer in zip(queries, expected, strict=True):
        result = client.search(query, 12)
        check(result, answer)
        assert result.coverage.complete
        assert result.bundle_version == tiny_bundle.version
    for result, answer in zip(client.search_batch(queries, 12), expected, strict=True):
        check(result, answer)

    for query in queries[:5]:
        row = tiny_bundle.featurizer.batch([query])
        check(client.search(row, 12), reference.top(query, 12, everything))

    result = client.search("red drill", 5, attributes=True, filter='category = "kitchen"')
    assert result.products
    assert all(product.attributes["category"] == "kitchen" for product in result.products)
    (best, *_) = client.search("red drill", 1, explain=True).products
    logs = [part.log_probability for part in best.explanation]
    assert best.score == pytest.approx(np.mean(logs), rel=1e-5)
    blocked = client.search("red drill", 3, blocked=[best.product_id])
    assert best.product_id not in [product.product_id for product in blocked.products]
    only = client.search("red drill", 3, allowed=["P00007", best.product_id])
    assert {product.product_id for product in only.products} == {"P00007", best.product_id}

    for arguments, named in (
        ({"query": ""}, "query.text"),
        ({"query": "x" * 100_000}, "query.text"),
        ({"query": "red", "k": 10**6}, "options.k"),
        ({"query": "red", "minimum_repetitions": 99}, "options.minimum_repetitions"),
        ({"query": "red", "filter": "price <"}, "filter"),
    ):
        with pytest.raises(InvalidInput, match=named.replace(".", r"\.")):
            client.search(**arguments)
    with pytest.raises(VersionNotFound):
        client.search("red", bundle_version="0" * 64)


def test_a_shard_is_killed_in_the_middle_and_comes_back(tiny_bundle, fleet, client, reference):
    failures, coverages, stop = [], [], threading.Event()

    def search_on():
        with MachClient(fleet.address, timeout=5.0) as mine:
            while not stop.is_set():
                try:
                    coverages.append(mine.search("red drill", 3).coverage.answered)
                except MachError as error:
                    failures.append(error)

    thread = threading.Thread(target=search_on)
    thread.start()
    try:
        wait_until(lambda: len(coverages) > 20)
        victim = fleet.shards[2]
        os.kill(victim.pid, signal.SIGKILL)
        wait_until(lambda: 3 in coverages)
        wait_until(lambda: victim.restarts == 1 and victim.health() == "serving")
        wait_until(lambda: coverages[-1] == 4)
    finally:
        stop.set()
        thread.join()
    assert failures == []
    check(client.search("acme drill red", 8), reference.top("acme drill red", 8, range(4)))


def test_a_stopped_shard_does_not_stop_the_answer(tiny_bundle, fleet, client, reference):
    client.search("red drill")
    os.kill(fleet.shards[0].pid, signal.SIGSTOP)
    try:
        result = client.search("acme drill red", 8, timeout=2.0)
        assert result.coverage.answered == 3
        assert list(result.coverage.missing) == [0]
        check(result, reference.top("acme drill red", 8, [1, 2, 3]))
        with pytest.raises(Unavailable, match="3 of 4"):
            client.search("acme drill red", 8, minimum_repetitions=4, timeout=3.0)
    finally:
        os.kill(fleet.shards[0].pid, signal.SIGCONT)
    wait_until(lambda: client.search("red drill").coverage.complete)


def test_stopping_answers_what_is_in_flight_and_leaves_nothing(tiny_bundle, fleet):
    pids = [server.pid for server in fleet.status().servers]
    outcomes = []

    def search_on():
        with MachClient(fleet.address, timeout=5.0) as mine:
            while True:
                try:
                    mine.search("red drill", 3)
                    outcomes.append(None)
                except MachError as error:
                    outcomes.append(error)
                    return

    threads = [threading.Thread(target=search_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(outcomes) > 20)
    fleet.stop()
    for thread in threads:
        thread.join()
    assert all(isinstance(outcome, Unavailable | None) for outcome in outcomes), outcomes[-8:]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_stopping_lets_servers_that_were_restarted_drain(tiny_bundle, tmp_path, monkeypatch):
    from mach.fleet import LocalFleet

    told, kill = [], os.kill

    def count(pid, number):
        if number == signal.SIGTERM:
            told.append(pid)
        kill(pid, number)

    patient = ["--straggler-seconds", "20", "--minimum-repetitions", "4"]
    fleet = LocalFleet(tiny_bundle, aggregator_arguments=patient, directory=tmp_path)
    outcomes = []

    def search():
        with MachClient(fleet.address, timeout=15.0) as client:
            try:
                outcomes.append(client.search("red drill", 3).coverage.answered)
            except MachError as error:
                outcomes.append(error)

    with fleet:
        for server in (fleet.shards[0], fleet.aggregator):
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda s=server: s.restarts == 1 and s.health() == "serving")
        slow = fleet.shards[1].pid
        os.kill(slow, signal.SIGSTOP)
        searching = threading.Thread(target=search)
        searching.start()
        wait_until(lambda: in_flight(fleet.aggregator.metrics) == 1)
        monkeypatch.setattr(os, "kill", count)
        pids = [server.pid for server in fleet.status().servers]
        threading.Timer(1.5, kill, (slow, signal.SIGCONT)).start()
        fleet.stop()
        searching.join()
    assert outcomes == [4]
    # Once each: a second signal cancels what a server still answers.
    assert sorted(told) == sorted(pids)
    for log in tmp_path.glob("*.log"):
        assert "second signal" not in log.read_text()


def in_flight(metrics):
    """Searches that an aggregator answers now."""
    with urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    name = "mach_aggregator_queries_in_flight "
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_a_server_that_cannot_be_started_again_is_tried_again(tiny_bundle, monkeypatch):
    from mach.fleet import LocalFleet

    popen, said = subprocess.Popen, []

    def fail_once(*arguments, **options):
        monkeypatch.setattr(subprocess, "Popen", popen)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with LocalFleet(tiny_bundle, num_shards=1, on_event=said.append) as fleet:
        monkeypatch.setattr(subprocess, "Popen", fail_once)
        (shard,) = fleet.shards
        for restarts in (1, 2):
            os.kill(shard.pid, signal.SIGKILL)
            wait_until(lambda n=restarts: shard.restarts == n and shard.health() == "serving")
    assert f"{shard.name} cannot be started: Resource temporarily unavailable" in said


def test_a_proxy_is_not_asked_for_the_fleets_own_servers(tiny_bundle, monkeypatch):
    from mach.fleet import LocalFleet
    from mach.fleet.switching import FleetAdmin

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    fleet = LocalFleet(tiny_bundle, num_shards=1, admin=True)
    fleet.start(timeout=60)
    try:
        assert fleet.status().serving
        assert len(FleetAdmin(fleet.admin_ports, timeout=10).loaded()) == 2
    finally:
        fleet.stop()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)], ids=["INT", "TERM"]
)
def test_a_signal_ends_a_fleet_that_starts(tiny_bundle, tmp_path, number, code):
    command = ["-m", "mach", "serve", str(tiny_bundle.path), "--listen", "127.0.0.1:0"]
    command += ["--shards", "1", "--log-dir", str(tmp_path)]
    with subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list(tmp_path.glob("aggregator.*.ready.json")), seconds=60)
        pids = [json.loads(file.read_text())["pid"] for file in tmp_path.glob("*.ready.json")]
        os.kill(pids[0], signal.SIGSTOP)  # as one that compiles for minutes
        process.send_signal(number)
        said = process.communicate(timeout=15)[1]
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert "serving at" not in said
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_fleet_that_cannot_start_says_why(tiny_bundle, tmp_path):
    from mach.errors import ConfigError
    from mach.fleet import LocalFleet

    fleet = LocalFleet(tiny_bundle, shard_arguments=["--provider", "cuda"], directory=tmp_path)
    with pytest.raises(ConfigError, match="cuda"):
        fleet.start(timeout=30)
    with pytest.raises(InvalidInput, match="shards"):
        LocalFleet(tiny_bundle, num_shards=99)


def test_fleets_may_share_a_directory_and_a_monitor_outlives_its_listener(tiny_bundle, tmp_path):
    from mach.fleet import LocalFleet

    told = []

    def deaf(message):
        told.append(message)
        raise OSError("nobody reads this")

    def fleet(**more):
        return LocalFleet(tiny_bundle, num_shards=1, directory=tmp_path, **more)

    with fleet(on_event=deaf) as one, fleet() as other:
        addresses = {server.address for each in (one, other) for server in each.status().servers}
        assert len(addresses) == 4
        for _ in range(2):
            before = one.shards[0].pid
            os.kill(before, signal.SIGKILL)
            wait_until(lambda old=before: one.shards[0].pid not in (None, old), seconds=30)
            wait_until(lambda: one.shards[0].health() == "serving", seconds=30)
    assert len(told) >= 3
    assert list(tmp_path.glob("*.ready.json")) == []


def test_several_repetitions_a_process(tiny_bundle, reference):
    from mach.fleet import LocalFleet

    with LocalFleet(tiny_bundle, num_shards=2) as fleet:
        assert [shard.name for shard in fleet.shards] == ["shard 0-1", "shard 2-3"]
        with MachClient(fleet.address, timeout=5.0) as client:
            check(client.search("red drill", 5), reference.top("red drill", 5, range(4)))

"""Several aggregator processes on one port."""

from __future__ import annotations

import os
import signal
import socket
from urllib.request import urlopen

import pytest

from mach.client import MachClient
from mach.fleet import LocalFleet
from tests.servers import ServerProcess, run_server, wait_until


@pytest.fixture(scope="module")
def fleet(tiny_bundle):
    with LocalFleet(tiny_bundle, num_shards=1) as running:
        yield running


def started(metrics):
    """Searches that a worker has begun, by its metrics."""
    with urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("grpc_server_started_total") and 'grpc_method="Search"' in line
    )


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_they_share_the_load_and_one_that_dies_is_replaced(tiny_bundle, fleet):
    arguments = ["-m", "aggregator", "--bundle", str(tiny_bundle.path), "--workers", "2"]
    with ServerProcess(*arguments, "--shards", fleet.shards[0].address) as server:
        workers = server.ready["workers"]
        assert len({worker["pid"] for worker in workers} | {server.pid}) == 3
        assert {worker["listen"] for worker in workers} == {server.address}

        def search_anew():  # the kernel chooses a worker for each connection
            with MachClient(server.address, timeout=10.0) as client:
                assert client.search("red drill", 3).coverage.complete

        def both_have_answered():
            search_anew()
            return all(started(worker["metrics"]) for worker in workers)

        wait_until(both_have_answered, seconds=40)
        victim, other = workers[0]["pid"], workers[1]["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not alive(victim))
        wait_until(lambda: "worker 0 ended" in server.stderr)
        # The metrics port was a free one, so it is another now: look at who listens, by searching.
        for _ in range(20):
            search_anew()
        assert alive(other)
        assert server.stop() == 0
        assert not alive(other)
        assert "Traceback" not in server.stderr


def test_they_end_with_their_parent(tiny_bundle, fleet):
    arguments = ["-m", "aggregator", "--bundle", str(tiny_bundle.path), "--workers", "2"]
    with ServerProcess(*arguments, "--shards", fleet.shards[0].address) as server:
        workers = [worker["pid"] for worker in server.ready["workers"]]
        server.signal(signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in workers))


@pytest.mark.parametrize(
    ("listen", "bundle", "message"),
    [
        ("taken", None, "Address already in use"),
        ("unix:/tmp/x", None, "several workers need HOST:PORT"),
        ("a..b:0", None, "--listen a..b:0: the host is not a valid name"),
        ("127.0.0.1:0", "nowhere", "there is no bundle at nowhere"),
    ],
)
def test_what_stops_a_start_is_one_sentence(tiny_bundle, tmp_path, listen, bundle, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if listen == "taken":
            listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_server(
            [
                *("-m", "aggregator", "--bundle", bundle or str(tiny_bundle.path)),
                *("--shards", "127.0.0.1:1", "--workers", "2", "--listen", listen),
            ]
        )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ready-file", "/no/such/dir/file"], "--ready-file /no/such/dir/file"),
        (["--metrics-listen", "127.0.0.1:65535"], "--metrics-listen 127.0.0.1:65535: 2 workers"),
        (["--admin-listen", "127.0.0.1:65535"], "need the ports 65535 to 65536"),
        (["--health-listen", "127.0.0.1:65535"], "65535 is the last one"),
    ],
)
def test_what_cannot_be_had_leaves_no_worker(tiny_bundle, arguments, message):
    common = ["-m", "aggregator", "--bundle", str(tiny_bundle.path), "--listen", "127.0.0.1:0"]
    # It would wait for its workers, which would go on serving.
    done = run_server([*common, "--shards", "127.0.0.1:1", "--workers", "2", *arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_ports_side_by_side():
    from mach.serving.workers import _above

    assert [_above("127.0.0.1:9090", number) for number in range(3)] == [
        "127.0.0.1:9090",
        "127.0.0.1:9091",
        "127.0.0.1:9092",
    ]
    assert _above("[::1]:0", 2) == "[::1]:0"
    assert _above("unix:/run/admin", 1) == "unix:/run/admin.1"
    assert _above(None, 1) is None

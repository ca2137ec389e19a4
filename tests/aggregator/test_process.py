"""The aggregator as a process, with real shards, some of them stopped, and with none."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request

import grpc
import pytest

from aggregator.service import AggregatorService
from aggregator.settings import AggregatorSettings
from mach.client import AsyncMachClient, MachClient
from mach.errors import DeadlineExceeded, MachError, Unavailable
from mach.fleet import LocalFleet
from mach.fleet.process import ServerProcess
from mach.serving import main
from tests.servers import wait_until


def run(*arguments):
    """Exit code and stderr of an aggregator that should not start."""
    done = subprocess.run(
        [sys.executable, "-m", "aggregator", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_a_stopped_shard_is_done_without_until_it_goes_on(tiny_bundle, titles, transport):
    arguments = ["--transport", transport, "--eject-seconds", "0.5"]
    with (
        LocalFleet(tiny_bundle, aggregator_arguments=arguments) as fleet,
        MachClient(fleet.address, timeout=5.0) as client,
    ):
        wait_until(lambda: client.search(titles[0], 1).coverage.complete)
        stopped = fleet.shards[2]
        stopped.signal(signal.SIGSTOP)
        try:
            seconds = []

            def left_out():
                started = time.perf_counter()
                result = client.search(titles[len(seconds) % 200], 1)
                seconds.append(time.perf_counter() - started)
                assert result.products
                assert result.coverage.answered >= 2
                state = next(s for s in client.describe().shards if 2 in s.repetitions)
                return 2 in result.coverage.missing and not state.ready

            wait_until(left_out)
            wait_until(lambda: left_out() and len(seconds) > 20)
            assert sorted(seconds)[len(seconds) // 2] < 1.0  # were it waited for, it would be 5
        finally:
            stopped.signal(signal.SIGCONT)
        wait_until(lambda: client.search(titles[0], 1).coverage.complete)


def test_clients_that_give_up_leave_nothing_behind(tiny_bundle, titles):
    arguments = ["--minimum-repetitions", "4"]
    with LocalFleet(tiny_bundle, aggregator_arguments=arguments) as fleet:
        fleet.shards[1].signal(signal.SIGSTOP)

        async def give_up():
            async with AsyncMachClient(fleet.address) as client:
                tasks = [asyncio.create_task(client.search(t, timeout=30)) for t in titles[:40]]
                await asyncio.sleep(0.2)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                with pytest.raises((DeadlineExceeded, Unavailable)):
                    await client.search(titles[0], timeout=0.2)

        asyncio.run(give_up())

        def in_flight():
            metrics = urllib.request.urlopen(f"http://{fleet.aggregator.metrics}/metrics").read()
            line = next(
                line
                for line in metrics.decode().splitlines()
                if line.startswith("mach_aggregator_queries_in_flight ")
            )
            return float(line.split()[1])

        wait_until(lambda: in_flight() == 0)
        fleet.shards[1].signal(signal.SIGCONT)
        with MachClient(fleet.address, timeout=5.0) as client:

            def answers():
                try:
                    return client.search(titles[0], 1).coverage.complete
                except MachError:
                    return False

            wait_until(answers)


def test_without_shards_it_lives_but_is_not_ready(tiny_bundle, tmp_path):
    server = ServerProcess(
        "aggregator",
        "aggregator",
        ["--bundle", str(tiny_bundle.path), "--shards", "127.0.0.1:1,127.0.0.1:2"],
        tmp_path,
        "127.0.0.1:0",
    )
    try:
        server.start()
        server.wait_bound(time.monotonic() + 30)
        with MachClient(server.address, timeout=5.0) as client:

            def described():
                try:
                    return client.describe()
                except Unavailable:
                    return None

            wait_until(described)
            time.sleep(0.5)
            assert server.health() == "not serving"
            shards = client.describe().shards
            assert [shard.address for shard in shards] == ["127.0.0.1:1", "127.0.0.1:2"]
            assert all("does not answer" in shard.message for shard in shards)
            with pytest.raises(Unavailable, match="0 of 4 repetitions answered, 2 are needed"):
                client.search("red drill")
        log = server.log_path.read_text()
        for address in ("127.0.0.1:1", "127.0.0.1:2"):
            assert log.count(f"shard {address} does not answer") == 1
        assert "Traceback" not in log
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: server.pid is None, seconds=10)
    finally:
        server.stop(time.monotonic() + 5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shards", "nonsense"], "'nonsense' is not HOST:PORT"),
        (["--shards", ""], "name at least one address"),
        (["--shards", "a:1,a:1"], "an address is named twice"),
        (["--shards", "a:1", "--max-k", "0"], "--max-k"),
        (["--shards", "a:1", "--encoding", "int4"], "--encoding"),
        ([], "--shards is required (or the environment variable MACH_AGGREGATOR_SHARDS)"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tiny_bundle, capsys, flags, message):
    argv = ["--bundle", str(tiny_bundle.path), "--listen", "127.0.0.1:0", *flags]
    assert main(AggregatorSettings, AggregatorService, component="aggregator", argv=argv) == 2
    is_one_sentence(capsys.readouterr().err, message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shards", "a:1", "--minimum-repetitions", "5"], "is more than the bundle's 4"),
        (["--shards", "a:1", "--no-such-flag"], "no-such-flag"),
    ],
)
def test_a_process_with_a_wrong_setting_ends(tiny_bundle, flags, message):
    code, error = run("--bundle", str(tiny_bundle.path), "--listen", "127.0.0.1:0", *flags)
    assert code == 2
    is_one_sentence(error, message)


def is_one_sentence(error, message):
    assert message in error
    assert "Traceback" not in error
    said = [line for line in error.splitlines() if line.startswith("aggregator: ")]
    assert len(said) == 1


def test_a_damaged_bundle_is_one_sentence(tiny_bundle, tmp_path):
    code, error = run("--bundle", str(tmp_path), "--shards", "a:1", "--listen", "127.0.0.1:0")
    assert code == 2
    assert "there is no bundle" in error
    assert "Traceback" not in error


def test_reflection_lists_the_service(tiny_bundle):
    with LocalFleet(tiny_bundle, num_shards=1) as fleet:
        from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
            ProtoReflectionDescriptorDatabase,
        )

        with grpc.insecure_channel(fleet.address) as channel:
            services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "mach.v1.SearchService" in services

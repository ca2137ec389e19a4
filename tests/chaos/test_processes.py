"""Processes that are killed or stopped while searches go on: none fails, none is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mach.client import MachClient
from mach.errors import Unavailable
from mach.fleet import LocalFleet
from tests.chaos.checking import Load, Oracle
from tests.chaos.conftest import addresses, aggregator_over, assert_nothing_unforeseen
from tests.servers import ServerProcess, wait_until


@pytest.fixture(scope="module")
def fleet(tiny_bundle):
    """Real shards, one process a repetition, that a supervisor restarts."""
    with LocalFleet(tiny_bundle, aggregator_arguments=["--eject-seconds", "0.2"]) as running:
        yield running


async def test_a_shard_killed(fleet, oracle):
    shard = fleet.shards[1]
    async with Load(fleet.address, oracle) as load:
        await load.until(lambda: load.seen.complete > 20)
        os.kill(shard.pid, signal.SIGKILL)
        await load.until(lambda: load.seen.degraded > 0)
        await load.until(lambda: shard.restarts == 1, seconds=40)
        await load.until(lambda: load.fresh().answers.keys() == {()}, seconds=40)
        assert load.errors == []
    assert load.seen.longest < 3


async def test_a_shard_stopped_and_continued(fleet, oracle):
    shard = fleet.shards[3]
    async with Load(fleet.address, oracle) as load:
        await load.until(lambda: load.seen.complete > 50)
        load.fresh()
        os.kill(shard.pid, signal.SIGSTOP)
        try:
            await load.until(lambda: load.seen.degraded > 50)
            # Found out, so that nobody waits for it any more: not even its name is on the list.
            with MachClient(fleet.address, timeout=3.0) as client:
                await load.until(lambda: not ready(client, shard.address))
            stopped = load.fresh()
            await load.until(lambda: load.seen.degraded > 100)
            assert load.fresh().complete == 0
        finally:
            os.kill(shard.pid, signal.SIGCONT)
        await load.until(lambda: load.seen.complete > 20)
    assert load.errors == []
    assert stopped.longest < 2


def ready(client: MachClient, address: str) -> bool:
    return {shard.address: shard.ready for shard in client.describe().shards}[address]


def stopped_writing(server: ServerProcess) -> bool:
    return server.health() != "SERVING"


def searches(client: MachClient, oracle: Oracle) -> bool:
    try:
        result = client.search(oracle.queries[0], 7)
    except Unavailable:
        return False
    oracle.check(oracle.queries[0], result)
    return True


async def test_an_aggregator_killed_while_it_drains(tiny_bundle, fakes, faulty, oracle, free_port):
    listen = f"127.0.0.1:{free_port}"
    # Patient, so that a slow shard keeps a request in flight.
    patient = ("--straggler-seconds", "20", "--minimum-repetitions", "4")
    faulty.delay = 15.0
    with (
        aggregator_over(tiny_bundle, addresses(fakes), *patient, listen=listen) as server,
        MachClient(listen, timeout=20.0) as client,
    ):
        outcomes = []

        def search():
            start = time.monotonic()
            try:
                outcomes.append(client.search(oracle.queries[0], 3))
            except Unavailable as error:
                outcomes.append((error, time.monotonic() - start))

        threads = [threading.Thread(target=search) for _ in range(5)]
        asked = faulty.asked
        for thread in threads:
            thread.start()
        await asyncio.to_thread(wait_until, lambda: faulty.asked > asked, "a request in flight")
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: stopped_writing(server), "the drain")
        assert server.health() != "SERVING" and outcomes == []
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL
        for thread in threads:
            thread.join(5)
        assert len(outcomes) == 5
        assert all(seconds < 15 for _, seconds in outcomes)
        await asyncio.to_thread(
            wait_until, lambda: faulty.streams <= 1, "the shard to drop the dead one's stream"
        )
        # Another at the same address: the same client goes on, and the shards answer rightly.
        faulty.behave()
        with aggregator_over(tiny_bundle, addresses(fakes), listen=listen) as successor:
            async with Load(listen, oracle) as load:
                await load.until(lambda: load.seen.complete > 50)
                assert load.errors == []
            await asyncio.to_thread(wait_until, lambda: searches(client, oracle), "a reconnection")
            assert successor.stop() == 0
            assert_nothing_unforeseen(successor.stderr)


def test_an_aggregator_drains_what_is_in_flight(tiny_bundle, fakes, faulty, oracle):
    faulty.delay = 1.0
    patient = ("--straggler-seconds", "20")
    with (
        aggregator_over(tiny_bundle, addresses(fakes), *patient) as server,
        MachClient(server.address, timeout=20.0) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        searches = [pool.submit(client.search, query, 7) for query in oracle.queries[:4]]
        in_flight = "mach_aggregator_queries_in_flight"
        wait_until(lambda: server.metrics()[in_flight] == 4, "four requests in flight")
        assert server.stop() == 0
        for query, search in zip(oracle.queries, searches, strict=False):
            result = search.result(5)
            oracle.check(query, result)
            assert result.coverage.complete
        assert_nothing_unforeseen(server.stderr)

"""An aggregator in a process of its own, over shards that do as they are told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import pytest

from mach.bundle import Bundle
from mach.inference import LoadedBundle
from tests.chaos.checking import Oracle
from tests.chaos.fake_shard import FakeShard
from tests.servers import ServerProcess, wait_until


@pytest.fixture(scope="package")
def oracle(tiny_bundle: Bundle) -> Oracle:
    """What must be answered."""
    return Oracle(tiny_bundle)


@pytest.fixture(scope="package")
def fakes(tiny_bundle: Bundle) -> Iterator[list[FakeShard]]:
    """One fake shard a repetition."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(FakeShard(LoadedBundle.load(tiny_bundle, [repetition])))
            for repetition in range(tiny_bundle.manifest.num_repetitions)
        ]


def addresses(shards: Iterable[FakeShard]) -> str:
    """As ``--shards`` wants them."""
    return ",".join(shard.address for shard in shards)


def assert_nothing_unforeseen(stderr: str) -> None:
    """What was logged is about others' faults, not our own."""
    assert "Traceback" not in stderr, stderr


def aggregator_over(bundle: Bundle, shards: str, *more: str, listen: str = "127.0.0.1:0"):
    """An aggregator process that is quick to leave shards out and to try them again.

    It reads whatever comes: a slow machine's burst of calls is no overload to drop calls for.
    """
    return ServerProcess(
        "-m", "aggregator", "--bundle", str(bundle.path), "--shards", shards,
        "--eject-seconds", "0.05", "--probe-seconds", "0.5", "--straggler-seconds", "0.1",
        "--max-message-bytes", "1048576", "--max-waiting-calls", "1000",
        *more, listen=listen,
    )  # fmt: skip


@pytest.fixture(scope="package")
def aggregator(tiny_bundle: Bundle, fakes: list[FakeShard]) -> Iterator[ServerProcess]:
    """Over the fake shards."""
    with aggregator_over(tiny_bundle, addresses(fakes)) as running:
        yield running
        assert running.stop() == 0, running.stderr
        assert_nothing_unforeseen(running.stderr)


@pytest.fixture
def faulty(fakes: list[FakeShard], aggregator: ServerProcess) -> Iterator[FakeShard]:
    """One of the fake shards, for a test to spoil; put right again afterwards."""
    shard = fakes[1]
    wait_until(lambda: aggregator.metrics()["mach_aggregator_repetitions_ready"] == 4, "all ready")
    yield shard
    for one in fakes:
        one.behave()

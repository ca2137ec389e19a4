"""A shard that is late, answers nonsense or another version: the others' answer, and right."""

from __future__ import annotations

import asyncio
import random
import socket
import threading

import grpc
import numpy as np
import pytest

from mach.client import MachClient
from mach.errors import Overloaded, Unavailable, VersionMismatch
from mach.v1 import shard_pb2
from tests.chaos.checking import Load, resident_mb
from tests.chaos.conftest import addresses, aggregator_over, assert_nothing_unforeseen

UINT8, FLOAT32 = shard_pb2.ENCODING_UINT8, shard_pb2.ENCODING_FLOAT32
FAULTY = 1
SLOW = 0.8  # seconds
random_bytes = random.Random(0).randbytes


def check_only(seen, *reasons):
    """Nothing failed or hung, and only the faulty shard was left out, for one of ``reasons``.

    But a busy machine may make any shard late.
    """
    assert seen.errors == []
    assert seen.longest < 2
    found = {(shard, reason) for shard, reason in seen.reasons if reason != "timeout"}
    assert found <= {(FAULTY, reason) for reason in reasons}, seen


def floats(value, like):
    return np.full(len(like) // 4, value, "<f4").tobytes()


def spoil_part(**changes):
    """Replace fields of the only repetition in an answer by functions of what they were."""

    def spoil(answer):
        part = answer.response.repetitions[0]
        for name, change in changes.items():
            setattr(part, name, change(getattr(part, name)))

    return spoil


def spoil_response(**changes):
    def spoil(answer):
        for name, change in changes.items():
            setattr(answer.response, name, change(getattr(answer.response, name)))

    return spoil


def twice(answer):
    answer.response.repetitions.append(answer.response.repetitions[0])


def none_at_all(answer):
    answer.ClearField("response")


def no_repetition(answer):
    del answer.response.repetitions[:]


def a_code(code):
    def spoil(answer):
        answer.ClearField("response")
        answer.code, answer.message = code, "as the test wants it"

    return spoil


NONSENSE = {
    "too short": spoil_part(data=lambda data: data[:-1]),
    "too long": spoil_part(data=lambda data: data + b"x"),
    "no data": spoil_part(data=lambda data: b""),
    "NaN": spoil_part(minimum=lambda old: floats(np.nan, old)),
    "infinite": spoil_part(step=lambda old: floats(np.inf, old)),
    "minus infinite": spoil_part(minimum=lambda old: floats(-np.inf, old)),
    "negative step": spoil_part(step=lambda old: floats(-1, old)),
    "above 0": spoil_part(minimum=lambda old: floats(5, old)),
    "no step": spoil_part(step=lambda old: b""),
    "another repetition": spoil_part(repetition=lambda number: number + 1),
    "no such repetition": spoil_part(repetition=lambda number: 2**32 - 1),
    "a repetition twice": twice,
    "no repetition": no_repetition,
    "an empty answer": none_at_all,
    "other number of queries": spoil_response(num_queries=lambda n: n + 1),
    "huge number of queries": spoil_response(num_queries=lambda n: 2**32 - 1),
    "other number of buckets": spoil_response(num_buckets=lambda n: n - 1),
    "another encoding": spoil_response(encoding=lambda _: FLOAT32),
    "an unknown encoding": spoil_response(encoding=lambda _: 77),
    "invalid argument": a_code(3),
    "internal": a_code(13),
    "an unknown status": a_code(4711),
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_nonsense_is_left_out(kind, aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        faulty.spoil = NONSENSE[kind]
        await load.until(lambda: load.seen.degraded > 20)
        faulty.behave()
        seen = load.fresh()
        await load.until(lambda: load.seen.complete > 5)
    check_only(seen, "invalid_answer", "unavailable", "version_mismatch")


def flood(request, answer):
    """Answers that nobody asked for, one after another, then the right one."""
    stray = shard_pb2.PredictStreamResponse(id=10**15)
    stray.response.repetitions.add(data=bytes(10_000))
    return [stray.SerializeToString()] * 50 + [answer.SerializeToString()]


def again_and_again(request, answer):
    return [answer.SerializeToString()] * 20


async def test_answers_that_nobody_asked_for_are_ignored_and_not_kept(aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        await load.until(lambda: load.seen.complete > 20)
        before = resident_mb(aggregator.pid)
        for replace in (flood, again_and_again):
            faulty.replace = replace
            asked = faulty.asked
            await load.until(lambda asked=asked: faulty.asked > asked + 60)
        faulty.behave()
        assert load.errors == []
        # 30 MB came that way.
        assert resident_mb(aggregator.pid) < before + 15


def no_message(request, answer):
    return [b"\xff" + random_bytes(200)]


def over_the_limit(request, answer):
    return [bytes(2 << 20)]


@pytest.mark.parametrize("replace", [no_message, over_the_limit])
async def test_bytes_that_are_no_answer(replace, aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        faulty.replace = replace
        await load.until(lambda: load.seen.degraded > 50)
        faulty.behave()
        seen = load.fresh()
        await load.until(lambda: load.seen.complete > 5)
    check_only(seen, "invalid_answer", "unavailable", "overloaded")


async def test_a_stream_that_ends_again_and_again(aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        faulty.fail = grpc.StatusCode.INTERNAL
        asked = faulty.asked
        await load.until(lambda: faulty.asked > asked + 3)
        faulty.behave()
        seen = load.fresh()
        await load.until(lambda: load.seen.complete > 5)
    assert seen.degraded > 0
    check_only(seen, "unavailable", "invalid_answer")


async def test_a_slow_shard_is_not_waited_for(aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        await load.until(lambda: load.seen.complete > 50)
        assert load.fresh().errors == []
        faulty.delay = SLOW
        await load.until(lambda: load.seen.degraded > 100)
        first = load.fresh()
        assert first.reasons[FAULTY, "timeout"] > 0
        # It is found out: from now on nobody waits, but for those who try it again.
        await load.until(lambda: load.seen.degraded > 100)
        later = load.fresh()
        faulty.behave()
        await load.until(lambda: load.seen.complete > 5)
    for seen in (first, later):
        check_only(seen)
        assert seen.longest < SLOW
    assert faulty.cancelled > 0, "late answers are not withdrawn"


async def test_a_shard_that_never_answers_costs_nothing_once_found_out(aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        faulty.delay = None
        await load.until(lambda: load.seen.degraded > 20)
        before, asked = resident_mb(aggregator.pid), faulty.asked
        load.fresh()
        await load.until(lambda: load.seen.answers.total() > 300)
        assert faulty.asked - asked < 60
        assert resident_mb(aggregator.pid) < before + 10
        assert load.errors == []


def answer_version(answer):
    answer.response.bundle_version = "f" * 64


def describe_version(description):
    description.bundle_version = "f" * 64
    del description.bundle_versions[:]
    description.bundle_versions.append("f" * 64)


async def test_an_answer_of_another_version_is_never_merged(aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        faulty.spoil = answer_version
        await load.until(lambda: load.seen.degraded > 20)
        # It admits it, as a shard would that was switched.
        faulty.describe = describe_version
        await load.until(lambda: load.seen.degraded > 50)
        seen = load.fresh()
        with MachClient(aggregator.address, timeout=3.0) as client:
            with pytest.raises(VersionMismatch, match="another bundle version"):
                await asyncio.to_thread(client.search, oracle.queries[0], minimum_repetitions=4)
            states = {shard.address: shard for shard in client.describe().shards}
        assert not states[faulty.address].ready
        assert "f" * 8 in states[faulty.address].message
        faulty.behave()
        await load.until(lambda: load.seen.complete > 5)
    assert seen.reasons[FAULTY, "version_mismatch"] > 0
    check_only(seen, "version_mismatch")


@pytest.mark.parametrize(
    ("field", "value"), [("num_buckets", 17), ("num_features", 5), ("max_batch_size", 0)]
)
async def test_a_description_that_does_not_fit(field, value, aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        faulty.describe = lambda description: setattr(description, field, value)
        faulty.fail = grpc.StatusCode.UNAVAILABLE  # so that it is asked again
        await load.until(lambda: load.seen.degraded > 20)
        faulty.fail = None
        await load.until(lambda: load.seen.answers.total() > 100)
        faulty.behave()
        await load.until(lambda: load.seen.complete > 5)
    assert load.errors == []


async def test_a_description_that_is_none_ends_nothing(aggregator, faulty, oracle):
    async with Load(aggregator.address, oracle) as load:
        faulty.describe_as = b"\xff\xff\xff"
        faulty.fail = grpc.StatusCode.UNAVAILABLE  # so that it is asked again
        await load.until(lambda: load.seen.degraded > 20)
        with MachClient(aggregator.address) as client:
            states = {shard.address: shard for shard in client.describe().shards}
        assert not states[faulty.address].ready
        faulty.fail = None
        seen = load.fresh()
        await load.until(lambda: seen.degraded > 20)  # it is not used for what it cannot say
        faulty.behave()
        await load.until(lambda: load.seen.complete > 5)
    assert load.errors == []


async def test_all_shards_lie(aggregator, fakes, faulty, oracle):
    for shard in fakes:
        shard.spoil = NONSENSE["NaN"]
    async with Load(aggregator.address, oracle) as load:
        await load.until(lambda: len(load.seen.errors) > 20)
        for shard in fakes:
            shard.behave()
        seen = load.fresh()
        await load.until(lambda: load.seen.complete > 20)
    # Never an answer from fewer repetitions than the default minimum, which is half.
    assert all(len(missing) <= 2 for missing in seen.answers)
    assert all(isinstance(error, Unavailable | Overloaded) for error in seen.errors)
    assert seen.longest < 3


class Babbler(threading.Thread):
    """Listens on a port and answers every connection with random bytes, or with silence."""

    def __init__(self, *, silent: bool) -> None:
        super().__init__(name="babbler")
        self._silent = silent
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            if not self._silent:
                connection.sendall(random_bytes(4000))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(10)
        for connection in self._connections:
            connection.close()


async def test_an_address_where_something_else_listens(tiny_bundle, fakes, oracle):
    with Babbler(silent=False) as noisy, Babbler(silent=True) as silent:
        shards = f"{noisy.address},{silent.address},{addresses(fakes)}"
        with aggregator_over(tiny_bundle, shards) as server:
            async with Load(server.address, oracle) as load:
                await load.until(lambda: load.seen.complete > 100)
                assert load.errors == []
                with MachClient(server.address, timeout=3.0) as client:
                    ready = [shard.ready for shard in client.describe().shards]
                assert sorted(ready) == [False, False, True, True, True, True]
            assert server.stop() == 0
            assert_nothing_unforeseen(server.stderr)


async def test_the_same_over_unary_calls(tiny_bundle, fakes, faulty, oracle):
    with aggregator_over(tiny_bundle, addresses(fakes), "--transport", "unary") as server:
        async with Load(server.address, oracle) as load:
            for replace in (no_message, over_the_limit):
                faulty.replace = replace
                await load.until(lambda: load.seen.degraded > 20)
                check_only(load.fresh(), "invalid_answer", "unavailable", "overloaded")
            faulty.behave()
            for spoil in (NONSENSE["NaN"], answer_version):
                faulty.spoil = spoil
                await load.until(lambda: load.seen.degraded > 20)
                load.fresh()
            faulty.behave()
            faulty.delay = SLOW
            await load.until(lambda: load.seen.reasons[FAULTY, "timeout"] > 5)
            faulty.behave()
            await load.until(lambda: load.seen.complete > 20)
            assert load.errors == []
        assert server.stop() == 0
        assert_nothing_unforeseen(server.stderr)

"""The queue: what waits runs together, what nobody waits for does not run, rows never mix."""

import asyncio
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from mach.errors import DeadlineExceeded, MachError, Overloaded, Unavailable
from mach.v1 import shard_pb2
from mach.wire import decode_rows
from shard_server.batcher import Batcher, Job
from shard_server.metrics import ShardMetrics
from tests.shard_server.helpers import rows

FLOAT32 = shard_pb2.ENCODING_FLOAT32
UINT8 = shard_pb2.ENCODING_UINT8


class Queue:
    """A batcher and what became of the jobs given to it."""

    def __init__(self, **options):
        self.registry = CollectorRegistry()
        defaults = {
            "max_batch_size": 64, "queue_capacity": 100, "workers": 1, "inline_seconds": 0.1,
        }  # fmt: skip
        self.batcher = Batcher(ShardMetrics(self.registry), **{**defaults, **options})
        self.done = []

    def submit(self, loaded, count=1, seed=0, repetitions=(0,), encoding=FLOAT32, **fields):
        finished = asyncio.get_running_loop().create_future()

        def on_done(job):
            self.done.append(job)
            finished.set_result(job)

        features = rows(loaded, count, seed)
        job = Job(loaded, features, tuple(repetitions), encoding, on_done, **fields)
        self.batcher.submit(job)
        return job, finished

    def sample(self, name, **labels):
        return self.registry.get_sample_value(name, labels)


async def started(gated):
    assert await asyncio.to_thread(gated.started.wait, 10)


def decoded(job, repetition, loaded):
    return decode_rows(job.answers[repetition], job.encoding, len(job.features), loaded.num_buckets)


async def test_what_waits_while_inference_runs_is_run_together(gated):
    queue = Queue()
    first = queue.submit(gated, 2)
    await started(gated)
    others = [queue.submit(gated, count, seed=count) for count in (1, 3, 5)]
    gated.gate.set()
    await asyncio.gather(*(future for _, future in [first, *others]))
    assert [count for count, _ in gated.calls] == [2, 9]
    assert queue.sample("mach_shard_batch_size_count") == 2
    assert queue.sample("mach_shard_batch_size_sum") == 11
    queue.batcher.close()


async def test_a_batch_does_not_grow_beyond_its_limit(gated):
    queue = Queue(max_batch_size=4)
    futures = [queue.submit(gated)[1]]
    await started(gated)
    futures += [queue.submit(gated, count)[1] for count in (2, 2, 1, 9)]
    gated.gate.set()
    await asyncio.gather(*futures)
    assert [count for count, _ in gated.calls] == [1, 4, 1, 9]  # a large request runs alone
    queue.batcher.close()


async def test_only_requests_for_the_same_models_run_together(gated, loaded):
    queue = Queue()
    futures = [queue.submit(gated, repetitions=[0])[1]]
    await started(gated)
    futures += [
        queue.submit(gated, 1, repetitions=[0])[1],
        queue.submit(gated, 2, repetitions=[0, 1])[1],
        queue.submit(gated, 3, repetitions=[0, 1])[1],
        queue.submit(loaded, 4, repetitions=[0, 1])[1],  # another bundle version
        queue.submit(gated, 5, repetitions=[0, 1])[1],
    ]
    gated.gate.set()
    await asyncio.gather(*futures)
    assert gated.calls == [(1, (0,)), (1, (0,)), (5, (0, 1)), (5, (0, 1))]
    queue.batcher.close()


@settings(max_examples=40)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 9),
            st.sampled_from([(0,), (0, 2), (3, 1)]),
            st.sampled_from([FLOAT32, UINT8, shard_pb2.ENCODING_FLOAT16]),
            st.booleans(),
        ),
        min_size=1,
        max_size=25,
    ),
    max_batch_size=st.integers(1, 40),
    workers=st.integers(1, 3),
    inline=st.booleans(),
)
def test_nobody_gets_anybody_elses_rows(loaded, requests, max_batch_size, workers, inline):
    async def scenario():
        queue = Queue(
            max_batch_size=max_batch_size,
            workers=workers,
            inline_seconds=1.0 if inline else 0.0,
            queue_capacity=1000,
        )
        pairs = []
        for seed, (count, repetitions, encoding, pause) in enumerate(requests):
            pairs.append(queue.submit(loaded, count, seed, repetitions, encoding))
            if pause:
                await asyncio.sleep(0)
        await asyncio.gather(*(future for _, future in pairs))
        queue.batcher.close()
        return [job for job, _ in pairs]

    for job in asyncio.run(scenario()):
        assert job.error is None
        assert set(job.answers) == set(job.repetitions)
        alone = loaded.run(job.features, job.repetitions)
        for repetition, expected in alone.items():
            tolerance = 1e-5 if job.encoding == FLOAT32 else 0.1
            np.testing.assert_allclose(
                decoded(job, repetition, loaded), expected, rtol=2e-3, atol=tolerance
            )


async def test_what_expired_is_dropped_before_it_costs_anything(gated):
    queue = Queue()
    first = queue.submit(gated)[1]
    await started(gated)
    job, late = queue.submit(gated, 7, deadline=time.monotonic() + 0.05)
    kept = queue.submit(gated, 2, deadline=time.monotonic() + 60)[1]
    await asyncio.sleep(0.1)
    gated.gate.set()
    await asyncio.gather(first, late, kept)
    assert isinstance(job.error, DeadlineExceeded)
    assert [count for count, _ in gated.calls] == [1, 2]
    assert queue.sample("mach_shard_dropped_total", reason="expired") == 1
    assert queue.sample("mach_shard_in_flight") == 0
    queue.batcher.close()


async def test_what_was_cancelled_is_dropped_without_an_answer(gated):
    queue = Queue()
    running, first = queue.submit(gated)
    await started(gated)
    waiting, _ = queue.submit(gated, 7)
    kept = queue.submit(gated, 2)[1]
    waiting.cancel()
    running.cancel()  # too late to save its cost, but nobody is told
    gated.gate.set()
    await kept
    assert [count for count, _ in gated.calls] == [1, 2]
    assert [len(job.features) for job in queue.done] == [2]
    assert not first.done()
    assert queue.sample("mach_shard_dropped_total", reason="cancelled") == 1
    assert queue.sample("mach_shard_in_flight") == 0
    queue.batcher.close()


async def test_a_full_queue_refuses(gated):
    queue = Queue(queue_capacity=10)
    futures = [queue.submit(gated)[1]]
    await started(gated)
    futures += [queue.submit(gated, count)[1] for count in (4, 6)]
    with pytest.raises(Overloaded, match="10 queries wait") as caught:
        queue.submit(gated)
    assert caught.value.retry_after_ms >= 1
    assert queue.sample("mach_shard_shed_total") == 1
    gated.gate.set()
    await asyncio.gather(*futures)
    await queue.submit(gated)[1]  # there is room again
    queue.batcher.close()


async def test_a_request_larger_than_the_queue_is_taken_when_it_is_empty(loaded):
    queue = Queue(queue_capacity=4)
    await queue.submit(loaded, 9)[1]
    queue.batcher.close()


async def test_a_wait_longer_than_the_deadline_is_refused_at_once(gated):
    queue = Queue()
    futures = [queue.submit(gated)[1]]
    await started(gated)  # and is expected to take half a minute
    futures.append(queue.submit(gated)[1])
    with pytest.raises(Overloaded, match="longer than the request's deadline") as caught:
        queue.submit(gated, deadline=time.monotonic() + 0.1)
    assert 1000 < caught.value.retry_after_ms <= 30_000
    futures.append(queue.submit(gated, deadline=time.monotonic() + 60)[1])
    gated.gate.set()
    await asyncio.gather(*futures)
    queue.batcher.close()


async def test_a_request_that_fails_fails_alone(gated, caplog):
    gated.failing_rows = {3, 3 + 2 + 1}
    queue = Queue()
    futures = [queue.submit(gated)[1]]
    await started(gated)
    futures += [queue.submit(gated, count, seed=count)[1] for count in (2, 3, 1)]
    gated.gate.set()
    _, two, three, one = await asyncio.gather(*futures)
    assert type(three.error) is MachError
    for job in (one, two):
        assert job.error is None
        np.testing.assert_allclose(
            decoded(job, 0, gated), gated.run(job.features, [0])[0], rtol=1e-5, atol=1e-5
        )
    assert "out of memory" in caplog.text
    await queue.submit(gated)[1]  # and the queue goes on
    queue.batcher.close()


async def test_repetitions_run_side_by_side_on_workers(gated):
    queue = Queue(workers=2)
    gated.gate.set()
    job, future = queue.submit(gated, 3, repetitions=[0, 1, 2])
    await future
    assert sorted(gated.calls) == [(3, (0, 2)), (3, (1,))]
    assert set(job.answers) == {0, 1, 2}
    queue.batcher.close()


async def test_closing_refuses_what_waits_and_what_comes(gated):
    queue = Queue()
    queue.submit(gated)
    await started(gated)
    job, future = queue.submit(gated)
    gated.gate.set()
    queue.batcher.close()
    await future
    assert isinstance(job.error, Unavailable)
    with pytest.raises(Unavailable):
        queue.submit(gated)


async def test_the_event_loop_stays_free_while_inference_runs(gated):
    queue = Queue()
    _, future = queue.submit(gated)
    await started(gated)
    for _ in range(3):
        await asyncio.sleep(0)  # would hang if inference held the loop
    assert not future.done()
    gated.gate.set()
    assert (await future).inference_seconds > 0
    queue.batcher.close()


async def test_repetitions_that_run_as_one_are_not_shared_among_workers(gated):
    gated.together = True  # as on a GPU
    queue = Queue(workers=2, inline_seconds=1000)
    job, future = queue.submit(gated, 3, repetitions=(0, 1))
    await started(gated)  # on a worker thread: it would block the event loop
    gated.gate.set()
    await future
    assert gated.calls == [(3, (0, 1))]
    assert set(job.answers) == {0, 1}
    queue.batcher.close()

"""The background thread: everything arrives, in order, or is stopped."""

import threading
import time

import numpy as np
import pytest
import torch

from mach.features import SparseBatch
from trainer.batched import prefetch
from trainer.batched.batch import batches_of
from trainer.batched.prefetch import Prefetcher, StepClock
from trainer.examples import Examples

CPU = torch.device("cpu")


def source(count, fail_at=None):
    for number in range(count):
        if number == fail_at:
            raise ValueError("broken")
        row = (np.array([number], np.int32), np.ones(1, np.float32))
        one = np.ones(1, np.float32)
        yield Examples(
            SparseBatch.from_rows([row]), np.zeros(1, np.int32), one, np.array([0, 1]), one
        )


def batches(*args):
    return batches_of(source(*args), 100, "softmax")


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_all_batches_in_order():
    with Prefetcher(batches(20), CPU) as ready:
        assert [int(batch.features[0]) for batch in ready] == list(range(20))
    assert not threads()


def test_an_error_comes_after_what_was_before_it():
    seen = []
    with pytest.raises(ValueError, match="broken"), Prefetcher(batches(9, 6), CPU) as ready:
        seen.extend(int(batch.features[0]) for batch in ready)
    assert not threads()


def test_leaving_early_ends_the_thread():
    with Prefetcher(batches(10**9), CPU) as ready:
        next(iter(ready))
    assert not threads()


def test_it_runs_no_further_ahead_than_a_few():
    drawn = []
    counted = (drawn.append(1) or batch for batch in batches(90))
    with Prefetcher(counted, CPU) as ready:
        next(iter(ready))
        time.sleep(0.3)
        assert len(drawn) <= 3 + prefetch._DEPTH


def test_the_clock_tells_waiting_from_working(monkeypatch):
    now = iter([0.0, 1.0, 4.0, 4.5, 8.0, 9.0, 10.0])
    monkeypatch.setattr(prefetch.time, "perf_counter", lambda: next(now))
    clock = StepClock(CPU)
    assert clock.waiting_share == 0
    clock.start()  # at 0
    for _ in range(4):  # ready at 1, done at 4, ready at 4.5, done at 8
        clock.mark()
    clock.read()
    assert (clock.waiting, clock.working) == (1.5, 6.5)
    clock.mark()
    clock.mark()
    clock.read()
    assert (clock.waiting, clock.working) == (2.5, 7.5)
    assert clock.waiting_share == 0.25

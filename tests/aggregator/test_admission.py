"""Who would be answered too late, by what answers have taken, is refused at once."""

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from aggregator.fanout.admission import Queue
from aggregator.metrics import AggregatorMetrics
from aggregator.policy import FanOutPolicy
from mach.errors import Overloaded


class Waiting(SimpleNamespace):
    """As much of a job as the queue looks at."""

    def __len__(self):
        return 1


def queue_after(answers, *, late=()):
    """A queue that has seen answers, and calls that ended without one, again and again."""
    queue = Queue(FanOutPolicy(), AggregatorMetrics(CollectorRegistry()))
    for _ in range(100):
        queue.served(0.02)
        for seconds in answers:
            queue.ended(seconds, answered=True)
        for seconds in late:
            queue.ended(seconds, answered=False)
    return queue


def job():
    """A job with 0.8 s left."""
    return Waiting(queued_at=10.0, deadline=10.8)


@pytest.mark.parametrize("busy", [True, False])
@pytest.mark.parametrize(
    ("answers", "late", "refused"),
    [
        ([0.1], [], False),
        ([0.9], [], True),
        ([0.1, 0.9], [], True),
        ([0.4], [0.1], False),  # cancelled early: nothing follows
        ([0.4], [1.2], True),  # one that was in time for each that was not
    ],
)
def test_a_deadline_must_leave_time_for_an_answer(answers, late, refused, busy):
    queue = queue_after(answers, late=late)
    if refused:
        with pytest.raises(Overloaded, match="more than is left of the request's deadline"):
            queue.push(job(), busy=busy, idle=False)
    else:
        queue.push(job(), busy=busy, idle=False)
    assert queue.rows == (not refused)


def test_where_nothing_is_on_its_way_one_is_let_in_to_see_how_long_answers_take():
    queue = queue_after([0.9])
    queue.push(job(), busy=False, idle=True)
    with pytest.raises(Overloaded):
        queue.push(job(), busy=False, idle=True)
    assert queue.rows == 1


@pytest.mark.parametrize("busy", [True, False])
def test_who_is_refused_is_told_when_to_come_back(busy):
    queue = queue_after([0.9])
    with pytest.raises(Overloaded) as no:
        queue.push(job(), busy=busy, idle=False)
    assert no.value.retry_after_ms == pytest.approx(20, abs=1)

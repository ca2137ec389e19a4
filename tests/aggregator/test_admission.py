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


@pytest.mark.parametrize(
    ("answers", "refused"), [([0.1], False), ([0.9], True), ([0.1, 0.9], True)]
)
def test_a_deadline_must_leave_time_for_an_answer(answers, refused):
    queue = Queue(FanOutPolicy(), AggregatorMetrics(CollectorRegistry()))
    for _ in range(100):
        queue.served(0.02)
        for seconds in answers:
            queue.answered(seconds)
    job = Waiting(queued_at=10.0, deadline=10.8)
    if refused:
        with pytest.raises(Overloaded, match="leaves too little of the request's deadline"):
            queue.push(job, busy=True)
    else:
        queue.push(job, busy=True)
    assert queue.rows == (not refused)

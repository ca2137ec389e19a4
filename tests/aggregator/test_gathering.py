"""When queries that wait are sent: one alone at once, those in company after a pause."""

from dataclasses import replace

import pytest

from aggregator.fanout.gathering import Gathering
from aggregator.policy import FanOutPolicy

POLICY = FanOutPolicy(gather_share=0.25, gather_most_seconds=0.005, max_rows=8)


def test_one_alone_is_sent_at_once():
    waiting = Gathering(POLICY)
    waiting.sent(1)
    waiting.arrived(10.0)
    assert waiting.due(1, others=False, batch_seconds=0.01) <= 10.0


@pytest.mark.parametrize(("last", "rows", "others"), [(2, 1, False), (1, 2, False), (1, 1, True)])
def test_company_waits_for_a_pause(last, rows, others):
    waiting = Gathering(POLICY)
    waiting.sent(last)
    waiting.arrived(10.0)
    waiting.arrived(10.001)
    assert waiting.due(rows, others=others, batch_seconds=0.01) == pytest.approx(10.0035, abs=1e-5)


def test_nobody_waits_longer_than_a_batch_takes():
    waiting = Gathering(POLICY)
    waiting.sent(3)
    for number in range(20):
        waiting.arrived(10.0 + number * 0.001)
    assert waiting.due(5, others=True, batch_seconds=0.01) == pytest.approx(10.01, abs=1e-5)
    waiting.sent(5)
    waiting.arrived(20.0)  # the next count from their own first
    assert waiting.due(1, others=True, batch_seconds=0.01) == pytest.approx(20.0025, abs=1e-5)


def test_slow_fleets_do_not_make_the_pause_long():
    waiting = Gathering(POLICY)
    waiting.sent(3)
    waiting.arrived(10.0)
    assert waiting.due(2, others=True, batch_seconds=1.0) == pytest.approx(10.005)


def test_a_full_batch_is_sent_at_once_and_so_is_everything_without_a_share():
    waiting = Gathering(POLICY)
    waiting.sent(8)
    waiting.arrived(10.0)
    assert waiting.due(8, others=True, batch_seconds=0.01) <= 10.0
    at_once = Gathering(replace(POLICY, gather_share=0.0))
    at_once.sent(8)
    at_once.arrived(10.0)
    assert at_once.due(2, others=True, batch_seconds=0.01) <= 10.0


def test_those_that_waited_for_a_batch_give_others_a_moment_once_they_may_be_sent():
    waiting = Gathering(POLICY)
    waiting.sent(3)
    waiting.arrived(10.0)
    waiting.opened(10.02)
    assert waiting.due(2, others=True, batch_seconds=0.02) == pytest.approx(10.025)


def test_a_moment_that_ends_late_begins_anew_but_not_for_ever():
    waiting = Gathering(POLICY)
    waiting.sent(3)
    waiting.arrived(10.0)
    due = waiting.due(2, others=True, batch_seconds=0.02)
    waiting.woke(due + 0.001, due)  # as good as in time
    assert waiting.due(2, others=True, batch_seconds=0.02) == due
    waiting.woke(due + 0.01, due)
    assert waiting.due(2, others=True, batch_seconds=0.02) == pytest.approx(10.02)

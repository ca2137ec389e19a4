"""What people see: bars with loss and time left on a terminal, plain lines elsewhere."""

import io

import pytest
from rich.console import Console

from trainer.progress import Reporter, TrainingEvent


def reporter_to(stream, *, terminal):
    reporter = Reporter(stream)
    reporter.console = Console(file=stream, force_terminal=terminal, width=120, highlight=False)
    return reporter


def event(step, **more):
    epoch = step // 50
    return TrainingEvent(3, epoch, epochs=2, step=step, steps=100, loss=1.5, **more)


def test_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    reporter = reporter_to(stream, terminal=False)
    with reporter.training() as bars:
        for step in range(0, 50, 10):
            bars.show(event(step))
        bars.show(event(50, held_out_loss=2.25))
        bars.show(event(100, held_out_loss=2.125))
        bars.show(event(100, finished=True))
    with reporter.counting("reading", "rows") as advance:
        advance(5)
    assert stream.getvalue().splitlines() == [
        "repetition 3: 50%, epoch 2/2, loss 1.500, held out 2.250",
        "repetition 3: 100%, epoch 2/2, loss 1.500, held out 2.125",
        "repetition 3: done, epoch 2/2, loss 1.500, held out 2.125",
    ]


def test_a_line_now_and_then_in_a_long_epoch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("trainer.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with reporter_to(stream, terminal=False).training() as bars:
        for step in range(40):
            now[0] = step
            bars.show(event(step))
    assert [line.split()[2] for line in stream.getvalue().splitlines()] == ["11%,", "22%,", "33%,"]


def test_bars_on_a_terminal():
    stream = io.StringIO()
    reporter = reporter_to(stream, terminal=True)
    with reporter.training() as bars:
        bars.show(event(25))
        bars.show(event(50, held_out_loss=2.25))
        bars.progress.refresh()
    shown = stream.getvalue()
    for part in ("repetition 3", "50%", "epoch 2/2", "loss 1.500, held out 2.250", "left"):
        assert part in shown
    with reporter.counting("reading", "rows") as advance:
        advance(1234)


def test_silence():
    reporter = Reporter.silent()
    reporter.console.file = stream = io.StringIO()
    reporter.say("something")
    with reporter.training() as bars:
        bars.show(event(10, held_out_loss=1.0))
    with reporter.counting("reading", "rows") as advance:
        advance(1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("text", ["[bold]not markup[/]", "a" * 300])
def test_messages_are_printed_as_they_are(text):
    stream = io.StringIO()
    reporter_to(stream, terminal=False).say(text)
    assert stream.getvalue() == text + "\n"

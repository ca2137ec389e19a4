"""Telling people how far a run is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Reporter", "TrainingBars", "TrainingEvent"]

_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class TrainingEvent:
    """How far one repetition is."""

    repetition: int
    epoch: int
    """Epochs done."""
    epochs: int
    step: int
    """Steps done over all epochs."""
    steps: int
    loss: float
    """Mean training loss of late, nats."""
    held_out_loss: float | None = None
    """At the end of an epoch: the held-out loss, nats."""
    finished: bool = False
    waiting: float | None = None
    """At the end, if several repetitions were trained as one model: the share of the time in
    which the device waited for data."""


class Reporter:
    """Writes messages and progress to standard error, or nowhere."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.console = Console(file=stream or sys.stderr, quiet=quiet, highlight=False, emoji=False)

    @classmethod
    def silent(cls) -> Reporter:
        """A reporter that says nothing."""
        return cls(quiet=True)

    def say(self, message: str) -> None:
        """One line."""
        self.console.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def counting(self, what: str, unit: str) -> Iterator[Callable[[int], None]]:
        """Count something whose total is not known; yields a function that adds to the count."""
        if self.console.quiet or not self.console.is_terminal:
            yield lambda _: None
            return
        columns = (
            TextColumn(what),
            TextColumn("{task.completed:,.0f} " + unit),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=None)
            yield lambda count: progress.update(task, advance=count)

    @contextmanager
    def training(self) -> Iterator[TrainingBars]:
        """Show repetitions in training."""
        bars = TrainingBars(self)
        with bars.progress if self.console.is_terminal else _nothing():
            yield bars


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class TrainingBars:
    """One bar a repetition on a terminal; elsewhere a line an epoch, and now and then one."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.progress = Progress(
            TextColumn("repetition {task.fields[repetition]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%  epoch {task.fields[epoch]}"),
            TextColumn("loss {task.fields[loss]:.3f}{task.fields[held_out]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=reporter.console,
        )
        self._tasks: dict[int, object] = {}
        self._held_out: dict[int, str] = {}
        self._said: dict[int, float] = {}

    def show(self, event: TrainingEvent) -> None:
        """Take in an event."""
        number = event.repetition
        if event.held_out_loss is not None:
            self._held_out[number] = f", held out {event.held_out_loss:.3f}"
        held_out = self._held_out.get(number, "")
        epoch = f"{min(event.epoch + (not event.finished), event.epochs)}/{event.epochs}"
        if not self._reporter.console.is_terminal:
            now = time.monotonic()
            due = now - self._said.setdefault(number, now) > _LINE_SECONDS
            if event.held_out_loss is not None or event.finished or due:
                self._said[number] = now
                share = event.step / event.steps if event.steps else 1.0
                state = "done" if event.finished else f"{share:.0%}"
                waiting = "" if event.waiting is None else f", waited {event.waiting:.0%} for data"
                self._reporter.say(
                    f"repetition {number}: {state}, epoch {epoch}, loss {event.loss:.3f}"
                    f"{held_out}{waiting}"
                )
            return
        if number not in self._tasks:
            self._tasks[number] = self.progress.add_task(
                "", total=event.steps, repetition=number, epoch="", loss=0.0, held_out=""
            )
        self.progress.update(
            self._tasks[number],  # type: ignore[arg-type]
            completed=event.steps if event.finished else event.step,
            total=event.steps,
            epoch=epoch,
            loss=event.loss,
            held_out=held_out + ("" if event.waiting is None else f", waited {event.waiting:.0%}"),
        )

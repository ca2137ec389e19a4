"""Batches made ready in the background, and how long the device waited for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from queue import Empty, Full, Queue
from types import TracebackType
from typing import Any

import torch

from trainer.batched.batch import GroupBatch

__all__ = ["Prefetcher", "StepClock"]

_DEPTH = 4
_POLL_SECONDS = 0.1


class Prefetcher:
    """Runs ``source`` in a thread, a few batches ahead, and copies them to the device.

    On CUDA the copy starts in that thread, from pinned memory and on a stream of its own, so
    that it runs beside the steps. Use as a context manager; leaving it ends the thread.

    Args:
        source: batches in host memory; an error in it is raised where the batches are taken.
        device: where they go.
    """

    def __init__(self, source: Iterator[GroupBatch], device: torch.device) -> None:
        self._source = source
        self._device = device
        self._queue: Queue[Any] = Queue(_DEPTH)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            stream: torch.cuda.Stream | None = None
            if self._device.type == "cuda":
                stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            for batch in self._source:
                if stream is None:
                    item: Any = (batch.to(self._device), None)
                else:
                    with torch.cuda.stream(stream):
                        item = (batch.pinned().to(self._device), stream.record_event())
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
                return True
            except Full:
                continue
        return False

    def __iter__(self) -> Iterator[GroupBatch]:
        while True:
            try:
                item = self._queue.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            batch, copied = item
            if copied is not None:
                current = torch.cuda.current_stream(self._device)
                current.wait_event(copied)
                for tensor in batch.tensors().values():
                    tensor.record_stream(current)  # its memory is not reused before the step
            yield batch


class StepClock:
    """Time of the steps, and time between them, in which the device had nothing to do.

    On CUDA both are taken by events on the device's own stream: a host that is slow but ahead
    costs nothing. Between steps lies the wait for the next batch and little else.

    Attributes:
        working: seconds in steps, up to the last :meth:`read`.
        waiting: seconds between them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []
        self.working = self.waiting = 0.0

    def start(self) -> None:
        """Begin to wait for a first batch."""
        self._marks.clear()
        self.mark()

    def mark(self) -> None:
        """A batch is there, or its step is done; called in turn."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def read(self) -> None:
        """Take in all steps since the last call; waits for them to be done. Between steps."""
        seconds = [self._between(*pair) for pair in pairwise(self._marks)]
        self.waiting += sum(seconds[0::2])
        self.working += sum(seconds[1::2])
        self._marks = self._marks[-1:]

    def _between(self, before: Any, after: Any) -> float:
        if self._device.type != "cuda":
            return float(after - before)
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3

    @property
    def waiting_share(self) -> float:
        """Share of the time in which the device waited, from 0 to 1."""
        total = self.working + self.waiting
        return self.waiting / total if total else 0.0

"""Training on one machine: some processes that share no state, each with its repetitions."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.context import SpawnContext, SpawnProcess
from queue import Empty
from typing import Any

from mach.errors import ConfigError, MachError
from trainer.batched import groups_of
from trainer.executor import Executor, OnEvent, train_unit
from trainer.plan import Plan, resolve_device
from trainer.progress import TrainingEvent
from trainer.settings import TrainSettings

__all__ = ["LocalExecutor"]

_POLL_SECONDS = 0.5


class LocalExecutor(Executor):
    """Processes of this machine, as many as ``workers`` says; the first error stops all."""

    def check(self, settings: TrainSettings) -> None:
        """See :class:`Executor`."""
        resolve_device(settings.device)

    def train(self, plan: Plan, repetitions: Sequence[int], on_event: OnEvent) -> None:
        """See :class:`Executor`.

        Raises:
            MachError: what a repetition raised, or that a process was killed.
        """
        units = groups_of(plan, repetitions)
        workers = plan.settings.num_workers(resolve_device(plan.settings.device).type)
        workers = min(workers, len(units))
        if workers <= 1:
            for unit in units:
                train_unit(plan, unit, on_event)
            return
        pool = _Pool(multiprocessing.get_context("spawn"), plan, units, workers)
        try:
            pool.watch(on_event)
        finally:
            pool.stop()


class _Pool:
    def __init__(
        self,
        context: SpawnContext,
        plan: Plan,
        units: Sequence[tuple[int, ...]],
        workers: int,
    ) -> None:
        self._messages: Any = context.Queue()
        self._tasks: Any = context.SimpleQueue()  # held here: it lives as long as its owner
        for unit in units:
            self._tasks.put(unit)
        for _ in range(workers):
            self._tasks.put(None)
        self._left = sum(map(len, units))
        self._processes: list[SpawnProcess] = [
            context.Process(
                target=_work, args=(plan, self._tasks, self._messages, os.getpid()), daemon=True
            )
            for _ in range(workers)
        ]
        for process in self._processes:
            process.start()

    def watch(self, on_event: OnEvent) -> None:
        checked = time.monotonic()
        while self._left:
            if time.monotonic() - checked >= _POLL_SECONDS:  # others may be talking all the time
                self._check_alive()
                checked = time.monotonic()
            try:
                message = self._messages.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if isinstance(message, BaseException):
                raise message
            on_event(message)
            self._left -= message.finished

    def _check_alive(self) -> None:
        for process in self._processes:
            if process.exitcode:
                cause = (
                    f"was killed by signal {-process.exitcode}"
                    if process.exitcode < 0
                    else f"ended with status {process.exitcode}"
                )
                raise ConfigError(
                    f"a training process {cause}, perhaps for lack of memory: use fewer workers; "
                    "the same command continues with what is not finished"
                )

    def stop(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.terminate()
        for process in self._processes:
            process.join()


def _work(plan: Plan, tasks: Any, messages: Any, parent: int) -> None:
    """A worker's life: train what the queue holds, until it holds nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers

    def tell(event: TrainingEvent) -> None:
        if os.getppid() != parent:  # it was killed: leave, the checkpoint stays
            os._exit(1)
        messages.put(event)

    while (unit := tasks.get()) is not None:
        try:
            train_unit(plan, unit, tell)
        except BaseException as error:
            if not isinstance(error, MachError):
                traceback.print_exc(file=sys.stderr)
                number = ", ".join(map(str, unit))
                error = MachError(f"training of repetition {number} failed: {error!r}")
            messages.put(_portable(error))
            return


def _portable(error: MachError) -> MachError:
    """The error as it can be pickled, whatever arguments its class takes."""
    plain = ConfigError if error.status == ConfigError.status else MachError
    return plain(str(error))

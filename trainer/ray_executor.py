"""Training as tasks of a Ray cluster.

Each task is one repetition (with ``group``, one batched model of several) and runs the very
code of a local run. The machines share the work directory, where data, checkpoints and models
lie; over Ray passes only which repetition to train, and progress. So a task that Ray runs again,
because its process or its machine died, continues from the checkpoint.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from mach.errors import ConfigError, MachError, UserError
from trainer.batched.memory import split_evenly
from trainer.executor import Executor, OnEvent, train_unit
from trainer.plan import Plan
from trainer.progress import TrainingEvent
from trainer.settings import TrainSettings
from trainer.workspace import Workspace

__all__ = ["RayExecutor"]

_RETRIES = 3
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 30.0


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise ConfigError(
            "executor: ray was asked for, but Ray is not installed: pip install 'mach-fleet[ray]'"
        ) from None
    return ray


class RayExecutor(Executor):
    """The cluster of ``RAY_ADDRESS``, or the one running on this machine, or one of its own.

    Args:
        say: told when no machine takes a task for long.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None) -> None:
        self._say = say

    def check(self, settings: TrainSettings) -> None:
        """See :class:`Executor`."""
        _ray()

    def train(self, plan: Plan, repetitions: Sequence[int], on_event: OnEvent) -> None:
        """See :class:`Executor`."""
        here = replace(plan, data=plan.data.absolute(), models=plan.models.absolute())
        with _connected(_ray()) as ray:
            _Tasks(ray, here, repetitions, self._say).watch(on_event)


@contextmanager
def _connected(ray: Any) -> Iterator[Any]:
    """Connect to a cluster unless that is done, and leave it again.

    Raises:
        ConfigError: if there is none and none can be started.
    """
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tells nobody unasked
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # whatever it is, it is about the cluster
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"no Ray cluster can be reached or started: {reason}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Board:
    """An actor that holds the last event of each repetition until it is taken."""

    def __init__(self) -> None:
        self._events: dict[int, TrainingEvent] = {}

    def post(self, event: TrainingEvent) -> None:
        self._events[event.repetition] = event

    def take(self) -> list[TrainingEvent]:
        taken, self._events = list(self._events.values()), {}
        return taken


def _train_task(plan: Plan, unit: tuple[int, ...], board: Any) -> MachError | None:
    """What a task runs; errors that another try would only repeat are its result."""

    def tell(event: TrainingEvent) -> None:
        board.post.remote(event)  # nobody waits for it

    left = tuple(r for r in unit if Workspace.finished(plan.models, r) is None)
    try:
        if left:  # or it died in the moment between being done and saying so
            train_unit(plan, left, tell)
    except MachError as error:
        return ConfigError(str(error)) if isinstance(error, UserError) else MachError(str(error))
    return None


class _Tasks:
    def __init__(
        self, ray: Any, plan: Plan, repetitions: Sequence[int], say: Callable[[str], None]
    ) -> None:
        self._ray, self._plan, self._say = ray, plan, say
        settings = plan.settings
        on_cuda = settings.device == "cuda" or (
            settings.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1
        )
        self._needs = {"num_cpus": settings.threads, "num_gpus": int(on_cuda)}
        together = settings.group if settings.batches("cuda" if on_cuda else "cpu") else None
        self._waiting = deque(split_evenly(repetitions, together or 1))
        self._most = settings.workers or len(self._waiting)
        self._running: dict[Any, tuple[int, ...]] = {}
        self._task = ray.remote(
            **self._needs, max_retries=_RETRIES, retry_exceptions=True, name="train_repetition"
        )(_train_task)
        self._board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()

    def watch(self, on_event: OnEvent) -> None:
        heard = time.monotonic()
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._most:
                unit = self._waiting.popleft()
                self._running[self._task.remote(self._plan, unit, self._board)] = unit
            done, _ = self._ray.wait(list(self._running), timeout=_POLL_SECONDS)
            events = self._events()
            for event in events:
                on_event(event)
            if events or done:
                heard = time.monotonic()
            elif time.monotonic() - heard > _PATIENCE_SECONDS:
                needs = ", ".join(f"{name} {count}" for name, count in self._needs.items())
                self._say(f"nothing heard from Ray yet; each task needs a node with {needs}")
                heard = float("inf")
            for reference in done:
                self._end(reference, self._running.pop(reference))

    def _events(self) -> list[TrainingEvent]:
        with suppress(self._ray.exceptions.RayError):  # its machine died; progress is not the work
            events: list[TrainingEvent] = self._ray.get(self._board.take.remote(), timeout=5)
            return events
        return []

    def _end(self, reference: Any, unit: tuple[int, ...]) -> None:
        number = ", ".join(map(str, unit))
        try:
            error = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as failure:
            raise MachError(
                f"training of repetition {number} failed {_RETRIES + 1} times: {failure.cause!r}"
            ) from None
        except self._ray.exceptions.RayError as failure:
            first = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            raise MachError(
                f"the Ray task of repetition {number} died {_RETRIES + 1} times ({first}); the "
                "same command continues with what is not finished"
            ) from None
        if error is not None:
            raise error

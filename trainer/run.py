"""A whole training run, or one part of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mach.bundle import Manifest
from mach.errors import BundleError, DataError, InvalidInput, Unavailable
from trainer.collect import collect
from trainer.executor import Executor
from trainer.export import check_size
from trainer.plan import Plan, resolve_device
from trainer.prepare import PreparedData, prepare
from trainer.progress import Reporter
from trainer.ray_executor import RayExecutor
from trainer.repetition import train_repetition
from trainer.settings import TrainSettings, default_batch, default_buckets
from trainer.tables import file_format
from trainer.workers import LocalExecutor
from trainer.workspace import Workspace, clear_message

__all__ = ["Job", "collect_bundle", "prepare_data", "train", "train_one"]


_MOST_NAME_BYTES = 200  # of the bundle: a file system takes 255 with what is put around it


@dataclass(frozen=True)
class Job:
    """What to train from, with what settings, and where the bundle goes."""

    interactions: Sequence[Path]
    catalog: Path | None
    out: Path
    settings: TrainSettings

    def fingerprint(self) -> str:
        """Identifies inputs and the settings that shape the prepared data.

        Raises:
            DataError: if an input is missing.
        """
        inputs = []
        for path in (*self.interactions, *([self.catalog] if self.catalog else [])):
            file_format(path)
            stat = path.stat()
            inputs.append([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
        return self.settings.data_fingerprint([inputs, self.catalog is not None])


def _check(job: Job) -> None:
    if not job.interactions:
        raise InvalidInput("interactions", "name at least one file")
    if job.out.exists():
        raise BundleError(f"{job.out} exists already; a bundle is never overwritten")
    if not job.out.parent.is_dir():
        raise InvalidInput("out", f"there is no directory {job.out.parent}")
    if job.out.is_symlink():
        raise InvalidInput("out", f"{job.out} is a link to what does not exist")
    if len(os.fsencode(job.out.name)) > _MOST_NAME_BYTES:
        raise InvalidInput("out", f"its name is longer than {_MOST_NAME_BYTES} bytes")


def _prepared(job: Job, reporter: Reporter) -> Plan:
    """Prepare the data unless that is done, and say how to train on them."""
    fingerprint = job.fingerprint()
    workspace = Workspace(job.out)
    directory = workspace.data(fingerprint)
    if directory.exists():
        reporter.say("the prepared data of an earlier run are used")
        if (damage := _damage(directory)) is not None:
            raise DataError(directory, f"is damaged, --prepare makes it anew: {damage}")
        data = PreparedData.open(directory)
    else:
        workspace.create(workspace.root)
        try:
            with clear_message(workspace.root):
                data = prepare(job.interactions, job.catalog, job.settings, directory, reporter)
        except BaseException:
            with suppress(OSError):  # not empty: others have finished something, or are at work
                workspace.root.rmdir()
            raise
    buckets = job.settings.buckets or default_buckets(data.num_classes)
    check_size(data.num_features, job.settings.hidden, buckets, job.settings.quantization)
    models = workspace.models(job.settings.model_fingerprint(fingerprint))
    workspace.create(models)
    batch_size = job.settings.batch_size or default_batch(len(data.train))
    return Plan(directory, models, buckets, batch_size, job.settings)


def _damage(directory: Path) -> DataError | None:
    try:
        PreparedData.open(directory).check()
    except DataError as error:
        return error
    return None


def _remove_damaged(directory: Path, reporter: Reporter) -> None:
    if directory.exists() and (damage := _damage(directory)) is not None:
        reporter.say(f"{damage}: preparing the data again")
        shutil.rmtree(directory)


def _wait_until(
    done: Callable[[], object], seconds: float, what: str, reporter: Reporter, *, every: float = 1.0
) -> None:
    """Wait for what another machine does in the shared work directory.

    Raises:
        Unavailable: if it is not done within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    said = False
    while not done():
        left = deadline - time.monotonic()
        if left <= 0:
            raise Unavailable(f"{what} did not come within {seconds:g} s")
        if not said:
            reporter.say(f"waiting for {what}")
            said = True
        time.sleep(min(every, left))


def _executor(settings: TrainSettings, reporter: Reporter) -> Executor:
    return RayExecutor(reporter.say) if settings.executor == "ray" else LocalExecutor()


def train(job: Job, reporter: Reporter) -> Manifest:
    """Do all of it, or what an interrupted run has left of it; returns the bundle's manifest.

    Raises:
        UserError: naming what to mend; nothing is left but the work directory.
    """
    _check(job)
    executor = _executor(job.settings, reporter)
    executor.check(job.settings)
    workspace = Workspace(job.out)
    fingerprint = job.fingerprint()
    with workspace.lock(workspace.root, "run", "training"), ExitStack() as cleanup:
        cleanup.callback(workspace.remove_if_empty)
        models = workspace.models(job.settings.model_fingerprint(fingerprint))
        if workspace.remove_stale({workspace.data(fingerprint), models}):
            reporter.say("inputs or settings have changed since the last run: starting over")
        _remove_damaged(workspace.data(fingerprint), reporter)
        started = time.monotonic()
        plan = _prepared(job, reporter)
        seconds = {"prepare": time.monotonic() - started}
        count = job.settings.repetitions
        left = [r for r in range(count) if Workspace.finished(models, r) is None]
        if len(left) < count:
            reporter.say(f"{count - len(left)} of {count} repetitions are finished already")
        started = time.monotonic()
        for repetition in left:
            Workspace.remove_drafts(models, repetition)
        if left:
            with reporter.training() as bars:
                executor.train(plan, left, bars.show)
        seconds["train"] = time.monotonic() - started
        started = time.monotonic()
        manifest = collect(plan, job.out, reporter)
        seconds["collect"] = time.monotonic() - started
        workspace.remove()
    size = sum(entry.size for entry in manifest.files.values())
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    reporter.say(f"{job.out}: {size / 1e6:.1f} MB, version {manifest.version[:12]} ({spent})")
    return manifest


def prepare_data(job: Job, reporter: Reporter) -> None:
    """Only read and featurize, so that machines which train need not; damaged data again.

    Raises:
        ConfigError: if the data are damaged and another process trains on them.
    """
    _check(job)
    workspace = Workspace(job.out)
    directory = workspace.data(job.fingerprint())
    if directory.exists() and _damage(directory) is not None:
        with workspace.lock(workspace.root, "run", "training"):
            _remove_damaged(directory, reporter)
    _prepared(job, reporter)


def train_one(
    job: Job, repetition: int, reporter: Reporter, *, wait: float = 0.0
) -> dict[str, Any]:
    """Train exactly one repetition into the work directory, unless that is done.

    Args:
        job: what to train.
        repetition: which repetition.
        reporter: told about progress.
        wait: seconds to wait for another machine to prepare the data; 0 prepares them here.

    Raises:
        InvalidInput: if the settings have no such repetition.
        DataError: if the prepared data are damaged: other machines may be at work on them.
        Unavailable: if the data are not prepared in time.
    """
    if not 0 <= repetition < job.settings.repetitions:
        raise InvalidInput(
            "repetition", f"{repetition} is not from 0 to {job.settings.repetitions - 1}"
        )
    _check(job)
    resolve_device(job.settings.device)
    workspace = Workspace(job.out)
    if wait:
        _wait_until(workspace.data(job.fingerprint()).exists, wait, "the prepared data", reporter)
    plan = _prepared(job, reporter)
    with workspace.lock(plan.models, f"repetition-{repetition:03d}", f"training {repetition}"):
        if (metrics := Workspace.finished(plan.models, repetition)) is not None:
            reporter.say(f"repetition {repetition} is finished already")
            return metrics
        Workspace.remove_drafts(plan.models, repetition)
        with reporter.training() as bars:
            return train_repetition(plan, repetition, bars.show)


def collect_bundle(job: Job, reporter: Reporter, *, wait: float = 0.0) -> Manifest:
    """Assemble the bundle from repetitions that were trained one by one.

    Args:
        job: what was trained.
        reporter: told about progress.
        wait: seconds to wait for repetitions that are not finished.

    Raises:
        BundleError: naming a repetition that is not finished.
        Unavailable: naming one that is not finished in time.
    """
    _check(job)
    if wait:
        deadline = time.monotonic() + wait
        workspace, fingerprint = Workspace(job.out), job.fingerprint()
        models = workspace.models(job.settings.model_fingerprint(fingerprint))
        for repetition in range(job.settings.repetitions):
            _wait_until(
                partial(Workspace.finished, models, repetition),
                max(0.0, deadline - time.monotonic()),
                f"repetition {repetition}",
                reporter,
            )
    manifest = collect(_prepared(job, reporter), job.out, reporter)
    Workspace(job.out).remove()
    reporter.say(f"{job.out}: version {manifest.version[:12]}")
    return manifest

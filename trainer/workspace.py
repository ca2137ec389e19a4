"""The work directory of a run, ``.NAME.partial`` beside the bundle NAME: what is finished stays.

    data-FINGERPRINT/                     prepared data, complete or absent
    model-FINGERPRINT/                    under one set of inputs and settings
        repetition-000.onnx               exported
        repetition-000.json               its metrics and hash; written last: the repetition is done
        repetition-000.checkpoint.npz     the last finished epoch of one in training

Several machines may share it through any file system with atomic rename. They train different
repetitions, so they never write the same file; data prepared twice are the same data.
A bundle is put together in ``.NAME.XXXXXXXX.staging`` beside it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mach import files
from mach.bundle import repetition_file
from mach.bundle.writer import hash_file
from mach.errors import ConfigError
from mach.files import write_atomically

__all__ = ["Workspace", "atomic_path", "clear_message"]

#: What the disk may refuse for reasons that the user can mend, and no traceback would explain.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}

#: What :mod:`tempfile` puts at the end of a name.
_RANDOM = r"[a-z0-9_]{8}"
#: Not written to for so long, a draft is no live run's: not even a killed run's last worker's.
_DRAFT_SECONDS = 600
#: The same of a bundle in sealing, where no lock tells whether it is a live run's.
_STAGING_SECONDS = 86_400


@contextmanager
def clear_message(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence.

    Raises:
        ConfigError: in place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise ConfigError(
            f"{path} cannot be written: {os.strerror(error.errno)}; what was finished is kept, "
            "so the same command continues from here"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, flushed and renamed to it at the end, else removed.

    Raises:
        ConfigError: if the disk is full or cannot be written.
    """
    with clear_message(path), files.atomic_path(path) as draft:
        yield draft


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


class Workspace:
    """Where a run keeps what it has finished.

    Args:
        out: the bundle to be.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self.root = out.parent / f".{out.name}.partial"

    def data(self, fingerprint: str) -> Path:
        """Where prepared data lie."""
        return self.root / f"data-{fingerprint}"

    def models(self, fingerprint: str) -> Path:
        """Where repetitions lie."""
        return self.root / f"model-{fingerprint}"

    def create(self, directory: Path) -> None:
        """Make a directory in it."""
        with clear_message(self.root):
            directory.mkdir(parents=True, exist_ok=True)

    def remove_stale(self, keep: set[Path]) -> bool:
        """Remove what other inputs or settings left, and drafts; says whether anything real was.

        Only for a run that holds the :meth:`lock`: elsewhere another machine may be at work.
        """
        stale = False
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if path.is_dir() and path not in keep:
                stale = stale or not path.name.startswith(".")
                shutil.rmtree(path, ignore_errors=True)
        return stale

    def remove(self) -> None:
        """Remove it all, after the bundle was sealed."""
        shutil.rmtree(self.root, ignore_errors=True)

    def remove_if_empty(self) -> None:
        """Remove it if nothing was finished in it."""
        if self.root.is_dir() and not any(path.is_dir() for path in self.root.iterdir()):
            self.remove()

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty directory beside the bundle, gone at the end; what dead runs left goes first.

        Raises:
            ConfigError: if another process has one.
        """
        with self.lock(self.root, "collect", "sealing the bundle") as locked:
            self._remove_staging(alone=locked)
            prefix = f".{self._out.name}."
            path = Path(tempfile.mkdtemp(prefix=prefix, suffix=".staging", dir=self._out.parent))
            try:
                path.chmod(0o755)
                yield path
            finally:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_staging(self, *, alone: bool) -> None:
        name = re.compile(rf"\.{re.escape(self._out.name)}\.{_RANDOM}\.staging")
        with suppress(OSError):  # a directory that cannot be listed, or another was faster
            for path in self._out.parent.iterdir():
                if name.fullmatch(path.name) and (alone or _age(path) >= _STAGING_SECONDS):
                    shutil.rmtree(path, ignore_errors=True)

    @staticmethod
    def remove_drafts(models: Path, repetition: int) -> None:
        """Remove what killed runs left half written of a repetition; see ``_DRAFT_SECONDS``."""
        name = re.compile(rf"\.repetition-{repetition:03d}\.(onnx|json|checkpoint\.npz)\.{_RANDOM}")
        for path in models.iterdir():
            with suppress(OSError):  # another was faster
                if name.fullmatch(path.name) and _age(path) >= _DRAFT_SECONDS:
                    path.unlink()

    @contextmanager
    def lock(self, directory: Path, name: str, what: str) -> Iterator[bool]:
        """Keep a second process of this machine from doing the same; freed when a process dies.

        Gives whether it is locked: some file systems have no locks.

        Raises:
            ConfigError: if another process holds it.
        """
        self.create(directory)
        with (directory / f".{name}.lock").open("w") as file:
            locked = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"another process is {what} in {directory}") from None
            except OSError:
                locked = False
            yield locked

    @staticmethod
    def model_path(models: Path, repetition: int) -> Path:
        """The exported model of a repetition."""
        return models / repetition_file(repetition)

    @staticmethod
    def checkpoint_path(models: Path, repetition: int) -> Path:
        """The checkpoint of a repetition in training."""
        return models / f"repetition-{repetition:03d}.checkpoint.npz"

    @staticmethod
    def _record_path(models: Path, repetition: int) -> Path:
        return models / f"repetition-{repetition:03d}.json"

    @classmethod
    def finish(cls, models: Path, repetition: int, metrics: dict[str, Any]) -> None:
        """Record that a repetition is done, and drop its checkpoint."""
        entry = hash_file(cls.model_path(models, repetition))
        record = {"sha256": entry.sha256, "size": entry.size, "metrics": metrics}
        path = cls._record_path(models, repetition)
        with clear_message(path):
            write_atomically(path, json.dumps(record, indent=2) + "\n")
        cls.checkpoint_path(models, repetition).unlink(missing_ok=True)

    @classmethod
    def finished(cls, models: Path, repetition: int) -> dict[str, Any] | None:
        """Metrics of a repetition that is done and whose model is intact, else None."""
        try:
            record = json.loads(cls._record_path(models, repetition).read_text())
            entry = hash_file(cls.model_path(models, repetition))
            if (entry.sha256, entry.size) != (record["sha256"], record["size"]):
                return None
            metrics: dict[str, Any] = record["metrics"]
            return metrics
        except (OSError, ValueError, KeyError, TypeError):
            return None

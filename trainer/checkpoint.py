"""Checkpoints: arrays in a zip file whose checksums are verified when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.workspace import atomic_path

__all__ = ["read_checkpoint", "read_progress", "write_checkpoint"]

_PROGRESS = "progress"


def write_checkpoint(path: Path, arrays: dict[str, NDArray[Any]], progress: dict[str, Any]) -> None:
    """Write arrays and a JSON-ready dictionary; a reader sees all of it or the file before it.

    Raises:
        ConfigError: if the disk is full.
    """
    text = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **{_PROGRESS: text}, **arrays)


def read_checkpoint(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
    """What :func:`write_checkpoint` wrote, or None if there is no file or it is damaged.

    Nothing in the file is executed: arrays only, no pickles.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        progress = json.loads(arrays.pop(_PROGRESS).tobytes())
    except Exception:  # a damaged zip file fails in a dozen ways, all of which mean the same
        return None
    return (arrays, progress) if isinstance(progress, dict) else None


def read_progress(path: Path) -> dict[str, Any] | None:
    """The dictionary alone, without reading the arrays; None as of :func:`read_checkpoint`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            progress = json.loads(file[_PROGRESS].tobytes())
    except Exception:  # as above
        return None
    return progress if isinstance(progress, dict) else None

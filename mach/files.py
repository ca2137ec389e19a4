"""Writing files so that a reader sees the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mach.errors import InvalidInput

__all__ = ["atomic_path", "check_target", "flush", "naming", "write_atomically"]


def check_target(field: str, path: Path) -> None:
    """Refuse where no file can be written, before the work whose result goes there.

    Raises:
        InvalidInput: naming ``field``.
    """
    if path.is_dir():
        raise InvalidInput(field, f"{path} is a directory")
    if not path.parent.is_dir():
        raise InvalidInput(field, f"{path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise InvalidInput(field, f"{path}: the directory cannot be written to")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What goes wrong with the file beside ``path`` is told of ``path``, which people know."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; at the end flushed and renamed to it, else removed."""
    with naming(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        yield draft
        with naming(path):
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            draft.chmod(0o644)
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or a directory's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(
    path: Path,
    content: str | bytes,
    *,
    mode: int = 0o644,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write ``content`` beside ``path``, flush it to disk, and rename it to ``path``.

    Args:
        path: where to.
        content: what; text as UTF-8.
        mode: permissions of the file.
        owner: numbers of the user and the group whose file it is to be; whoever writes it where
            not given.

    Raises:
        OSError: if ``path`` cannot be written, or not be given to ``owner``; its ``filename``
            is ``path``.
    """
    data = content.encode() if isinstance(content, str) else content
    with naming(path):
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if owner is not None:
                os.chown(name, *owner)
            Path(name).chmod(mode)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

"""What is made of files, and made anew when they change: certificates, tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["Reloaded"]

T = TypeVar("T")

_Signature = tuple[tuple[int, ...] | None, ...]


class Reloaded(Generic[T]):
    """The value of some files.

    Attributes:
        name: what it is, for log lines and metrics: ``tls``, ``tokens``.
        value: as of the latest files that could be used; replaced whole, so that any thread may
            read it.
    """

    def __init__(self, name: str, paths: Sequence[Path], load: Callable[[], T]) -> None:
        """Load it.

        Args:
            name: see the class.
            paths: the files that it is made of.
            load: makes it; raises a ``UserError`` where they cannot be used.

        Raises:
            UserError: what ``load`` raises.
        """
        self.name = name
        self._paths = tuple(paths)
        self._load = load
        # Before the files are read: a change in between is then seen by the next check.
        self._seen = self._signature()
        self._failure: str | None = None  # why the files as seen cannot be used
        self.value = load()

    def _signature(self) -> _Signature:
        found: list[tuple[int, ...] | None] = []
        for path in self._paths:
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                # The last tells of permissions and owners, too.
                times = (status.st_mtime_ns, status.st_ctime_ns)
                found.append((status.st_dev, status.st_ino, status.st_size, *times))
        return tuple(found)

    def check(self) -> bool:
        """Look whether the files changed; not from two threads at once.

        Returns:
            Whether there is another value now.

        Raises:
            UserError: they changed to something that cannot be used; the value stays. They are
                tried again, in case that passes; the same failure is raised once.
        """
        signature = self._signature()
        if signature == self._seen and self._failure is None:
            return False
        try:
            value = self._load()
        except Exception as error:
            known = signature == self._seen and str(error) == self._failure
            self._seen, self._failure = signature, str(error)
            if known:
                return False
            raise
        self._seen, self._failure = signature, None
        if value == self.value:
            return False
        self.value = value
        return True

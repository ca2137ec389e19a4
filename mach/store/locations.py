"""Where bundles lie: one small interface over directories and object stores."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

from mach.errors import BundleError, ConfigError, MachError, Unavailable
from mach.files import naming

__all__ = ["Location", "open_location"]

#: What is read of an object at a time; a store's own default can be 50 MiB for each file.
_BLOCK = 8 << 20


class Location(ABC):
    """A place that holds files under plain names. Thread-safe.

    Attributes:
        name: for people: the path or URL.
    """

    name: str

    @abstractmethod
    def child(self, name: str) -> Location:
        """The place ``name`` below this one."""

    @abstractmethod
    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Read a file.

        Raises:
            BundleError: if there is no such file.
            Unavailable: if it cannot be read now; also from within the context.
        """

    @abstractmethod
    def size(self, name: str) -> int | None:
        """A file's length in bytes, or None if there is no such file.

        Raises:
            Unavailable: if the place cannot be asked now.
        """

    @abstractmethod
    def put(self, source: Path, name: str) -> None:
        """Copy a file here: it appears whole or not at all.

        Raises:
            Unavailable: if the place does not take it.
        """


class _Directory(Location):
    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path

    def child(self, name: str) -> Location:
        return _Directory(self._path / name, f"{self.name.rstrip('/')}/{name}")

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        try:
            with (self._path / name).open("rb") as file:
                yield file
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(f"there is no {name} at {self.name}") from error

    def size(self, name: str) -> int | None:
        path = self._path / name
        return path.stat().st_size if path.is_file() else None

    def put(self, source: Path, name: str) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self._path)
        try:
            with (
                source.open("rb") as reader,
                naming(self._path / name),
                os.fdopen(descriptor, "wb") as writer,
            ):
                shutil.copyfileobj(reader, writer, _BLOCK)
                writer.flush()
                os.fsync(writer.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(self._path / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


class _Objects(Location):
    """Files of an fsspec file system below a prefix."""

    def __init__(self, filesystem: Any, prefix: str, name: str) -> None:
        self.name = name
        self._filesystem = filesystem
        self._prefix = prefix.rstrip("/")

    def child(self, name: str) -> Location:
        return _Objects(
            self._filesystem, f"{self._prefix}/{name}", f"{self.name.rstrip('/')}/{name}"
        )

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except MachError:
            raise
        except FileNotFoundError as error:
            cause = error.__cause__
            if _is_absence(cause):
                raise BundleError(f"there is no {name} at {self.name}") from error
            raise Unavailable(f"{self.name}/{name}: {_reason(cause)}") from error
        except Exception as error:  # every store's client has exceptions of its own
            raise Unavailable(f"{self.name}/{name}: {_reason(error)}") from error

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with self._errors(name):
            opened = self._filesystem.open(self._path(name), "rb", block_size=_BLOCK)
        with contextlib.closing(opened):
            # Only what the store raises is translated, not what the caller's own work does.
            yield cast("BinaryIO", _Guarded(opened, lambda: self._errors(name)))

    def size(self, name: str) -> int | None:
        try:
            with self._errors(name):
                self._filesystem.invalidate_cache()
                return int(self._filesystem.info(self._path(name))["size"])
        except BundleError:
            return None

    def put(self, source: Path, name: str) -> None:
        with self._errors(name):
            self._filesystem.put_file(str(source), self._path(name))


def _is_absence(cause: BaseException | None) -> bool:
    """Whether a file that a store does not find is not there.

    fsspec's http:// says so of any failure; what failed is the cause, with its status if a server
    answered.
    """
    status = getattr(cause, "status", None)
    if status is None:
        return not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError)
    return status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


def _reason(error: BaseException | None) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Guarded:
    """A file whose ``read`` raises errors of :mod:`mach.errors`."""

    def __init__(self, file: BinaryIO, errors: Any) -> None:
        self._file = file
        self._errors = errors

    def read(self, size: int = -1) -> bytes:
        with self._errors():
            return self._file.read(size)


def open_location(location: str) -> Location:
    """The place a path or URL names; nothing is asked of it yet.

    Raises:
        ConfigError: if it is empty, the scheme is not known or its package is not installed.
    """
    if not location:
        raise ConfigError("the location of a store or bundle is empty: give a path or a URL")
    if "://" not in location:
        return _Directory(Path(location), location)
    try:
        parts = urlsplit(location)
    except ValueError as error:
        raise ConfigError(f"{location}: is not a URL: {error}") from None
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigError(f"{location}: a file:// URL has three slashes, file:///path")
        return _Directory(Path(unquote(parts.path)), location)
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError(
            f"{location}: object stores need the extra 'store': pip install 'mach-fleet[store]'"
        ) from error
    try:
        filesystem, prefix = url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{location}: {error}") from error
    except Exception as error:  # every store's client has exceptions of its own
        raise Unavailable(f"{location}: {error}") from error
    return _Objects(filesystem, prefix, location.rstrip("/"))

"""Copying bundles: published whole, and hashed before they are used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event

from mach.bundle import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    Bundle,
    FileEntry,
    Manifest,
    hash_blocks,
    hash_file,
    parse_manifest,
)
from mach.errors import BundleError, ConfigError, InvalidInput, Unavailable
from mach.files import naming, write_atomically
from mach.store.locations import Location, open_location

__all__ = ["fetch", "link", "push"]

_BLOCK = 1 << 20
#: A partial file that nobody has written to for so long was left by a process that died.
_ABANDONED_SECONDS = 3600.0
_PART = ".part"
_VERSION = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[str, int, int], None]


def _no_progress(name: str, done: int, total: int) -> None:
    pass


def push(bundle: Bundle, store: str, *, workers: int = 4, progress: Progress = _no_progress) -> str:
    """Publish a bundle as ``store/<version>``.

    Files that are there already are read and hashed: those that are intact are kept, others
    replaced. The manifest goes last.

    Args:
        bundle: what to publish; every file is hashed first.
        store: path or URL of the place that holds bundles.
        workers: files copied at once.
        progress: called with a file's name, its bytes done and its length: once for every
            file at the start, then from any thread.

    Returns:
        The bundle's own location.

    Raises:
        BundleError: if the bundle is corrupt.
        ConfigError: if the URL cannot be understood.
        Unavailable: if the store does not take it.
    """
    target = open_location(store).child(bundle.version)
    bundle.verify(bundle.manifest.files)
    published = _has_manifest(target, bundle.version)
    files = bundle.manifest.files
    for name, entry in files.items():
        progress(name, 0, entry.size)

    def copy(name: str, stop: Event) -> None:
        entry = files[name]
        if not _holds(target, name, entry, stop):
            target.put(bundle.path / name, name)
            if (size := target.size(name)) != entry.size:
                raise Unavailable(f"{target.name}/{name} has {size} bytes after {entry.size}")
        progress(name, entry.size, entry.size)

    _for_each(copy, files, workers)
    if not published:
        target.put(bundle.path / MANIFEST_FILE, MANIFEST_FILE)
    return target.name


class _Ended(Exception):
    """Another file's copy failed, or all were interrupted; nobody is told of it."""


def _for_each(copy: Callable[[str, Event], None], names: Iterable[str], workers: int) -> None:
    """Copy files, several at a time; what ends one ends the others at their next block."""
    stop = Event()
    pool = ThreadPoolExecutor(workers)
    try:
        for done in as_completed([pool.submit(copy, name, stop) for name in names]):
            done.result()
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _has_manifest(target: Location, version: str) -> bool:
    """Whether a manifest is there that can be read; one of another version is an error."""
    if target.size(MANIFEST_FILE) is None:
        return False
    try:
        there = _read_manifest(target)
    except BundleError:  # damaged: the bundle's own takes its place
        return False
    if there.version != version:
        raise BundleError(f"{target.name} holds version {there.version} under the wrong name")
    return True


def _holds(location: Location, name: str, entry: FileEntry, stop: Event) -> bool:
    """Whether a file is there with this content: its length alone does not tell."""
    return (
        location.size(name) == entry.size
        and hash_blocks(_blocks(location, name, entry.size, stop)) == entry
    )


def _read_manifest(location: Location) -> Manifest:
    with location.open(MANIFEST_FILE) as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{location.name}/{MANIFEST_FILE} is too long to be a manifest")
    return parse_manifest(data, f"{location.name}/{MANIFEST_FILE}")


def fetch(
    location: str,
    cache: Path,
    *,
    version: str | None = None,
    files: Callable[[Manifest], Iterable[str]] | None = None,
    workers: int = 4,
    progress: Progress = _no_progress,
) -> Path:
    """Copy a bundle, or some files of it, to ``cache/<version>`` unless it is there.

    What is there is hashed too, so what this returns is what the manifest says. A fetch that
    is cut off is continued by the next; two at once do not disturb each other. The manifest
    appears last: a directory without one is not a bundle yet.

    Args:
        location: path or URL of the bundle (where its ``manifest.json`` is).
        cache: a directory for bundles; made where missing.
        version: the version that is expected. Where the cache holds it complete, the location
            is not asked at all.
        files: which files are needed; all by default.
        workers: files copied at once.
        progress: called with a file's name, its bytes done and its length: once for every
            file at the start, then from any thread.

    Returns:
        The bundle's directory, for :meth:`Bundle.open`.

    Raises:
        InvalidInput: if ``version`` is not a version's 64 hexadecimal digits.
        BundleError: if there is no bundle, or not this version, or a file is not what the
            manifest says.
        ConfigError: if the URL cannot be understood.
        Unavailable: if the store does not answer.
    """
    if version is not None and not _VERSION.fullmatch(version):
        raise InvalidInput("version", f"{version[:80]!r} is not 64 hexadecimal digits (0-9, a-f)")
    source = open_location(location)
    manifest = _cached_manifest(cache, version) or _read_manifest(source)
    if version is not None and manifest.version != version:
        raise BundleError(f"{source.name} holds version {manifest.version}, not {version}")
    target = cache / manifest.version
    target.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    names = list(manifest.files if files is None else files(manifest))
    for name in names:
        progress(name, 0, manifest.files[name].size)

    def copy(name: str, stop: Event) -> None:
        entry = manifest.files[name]
        if not _is_intact(target / name, entry):
            _download(source, name, entry, target, progress, stop)
        progress(name, entry.size, entry.size)

    _for_each(copy, names, workers)
    if _cached_manifest(cache, manifest.version) is None:
        write_atomically(target / MANIFEST_FILE, manifest.to_json())
    return target


def _cached_manifest(cache: Path, version: str | None) -> Manifest | None:
    """What the cache holds of the version; a damaged one is written over at the end."""
    if version is None:
        return None
    path = cache / version / MANIFEST_FILE
    with contextlib.suppress(OSError, BundleError):
        manifest = parse_manifest(path.read_bytes(), str(path))
        if manifest.version == version:
            return manifest
    return None


def _is_intact(path: Path, entry: FileEntry) -> bool:
    try:
        return path.stat().st_size == entry.size and hash_file(path) == entry
    except OSError:
        return False


def _download(
    source: Location,
    name: str,
    entry: FileEntry,
    target: Path,
    progress: Progress,
    stop: Event,
) -> None:
    descriptor, part = tempfile.mkstemp(prefix=f".{name}.", suffix=_PART, dir=target)
    try:
        digest, done = hashlib.sha256(), 0
        with naming(target / name), os.fdopen(descriptor, "wb") as writer:
            for block in _blocks(source, name, entry.size, stop):
                digest.update(block)
                writer.write(block)
                done += len(block)
                progress(name, done, entry.size)
            writer.flush()
            os.fsync(writer.fileno())
        if done != entry.size or digest.hexdigest() != entry.sha256:
            raise BundleError(f"{source.name}/{name} differs from the manifest: it is corrupt")
        Path(part).chmod(0o644)
        Path(part).replace(target / name)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _blocks(source: Location, name: str, size: int, stop: Event) -> Iterator[bytes]:
    """Blocks of a file, and no more than one beyond ``size``: it may be endless."""
    done = 0
    with source.open(name) as reader:
        while done <= size and (block := reader.read(_BLOCK)):
            if stop.is_set():
                raise _Ended
            done += len(block)
            yield block


def _remove_abandoned(directory: Path) -> None:
    for part in directory.glob(f".*{_PART}"):
        with contextlib.suppress(OSError):  # another process may have been first
            if time.time() - part.stat().st_mtime > _ABANDONED_SECONDS:
                part.unlink()


def link(bundle: Path, at: Path) -> None:
    """Make ``at`` a symbolic link to a bundle's directory, in place of one that is there.

    Raises:
        ConfigError: if something else than a link is there.
    """
    if at.exists() and not at.is_symlink():
        raise ConfigError(f"{at} exists and is not a link")
    at.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{at.name}.", dir=at.parent) as directory:
        temporary = Path(directory) / at.name
        temporary.symlink_to(bundle.resolve())
        temporary.replace(at)

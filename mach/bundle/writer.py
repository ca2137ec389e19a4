"""Turning a staging directory into a bundle, in one atomic step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from mach.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest
from mach.errors import BundleError
from mach.features import Featurizer
from mach.files import flush

__all__ = ["hash_blocks", "hash_file", "seal", "write_features"]

_BLOCK = 1 << 20


def hash_blocks(blocks: Iterable[bytes]) -> FileEntry:
    """Length and SHA-256 of what the blocks make up."""
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
    return FileEntry(sha256=digest.hexdigest(), size=size)


def hash_file(path: Path) -> FileEntry:
    """Length and SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hash_blocks(iter(lambda: file.read(_BLOCK), b""))


def write_features(path: Path, featurizer: Featurizer) -> None:
    """Write ``features.arrow``."""
    table = featurizer.to_arrow()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def seal(staging: Path, out: Path, **fields: Any) -> Manifest:
    """Hash what lies in ``staging``, add the manifest, and rename the whole to ``out``.

    Everything is flushed to disk before the rename, so ``out`` is complete or absent.

    Args:
        staging: a directory on the file system of ``out`` that holds the bundle's files
            and nothing else.
        out: where the bundle shall be; must not exist.
        fields: the fields of :class:`Manifest` but ``format version files created``.

    Raises:
        BundleError: if ``out`` exists or a file of the bundle is missing.
    """
    if out.exists():
        raise BundleError(f"{out} exists already; a bundle is never overwritten")
    files = {
        path.name: hash_file(path)
        for path in sorted(staging.iterdir())
        if path.name != MANIFEST_FILE
    }
    try:
        manifest = Manifest.build(
            files=files, created=datetime.now(UTC).isoformat(timespec="seconds"), **fields
        )
    except ValueError as error:
        raise BundleError(f"{staging} is no complete bundle: {error}") from error
    (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    for path in staging.iterdir():
        flush(path)
    flush(staging)
    staging.rename(out)
    flush(out.parent)
    return manifest

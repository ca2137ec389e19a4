"""Which files of a bundle a server needs: most of a bundle's bytes are other shards' models."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from mach.bundle.manifest import (
    BUCKETS_FILE,
    CATALOG_FILE,
    FEATURES_FILE,
    Manifest,
    repetition_file,
)
from mach.errors import InvalidInput

__all__ = ["Role", "files_for"]

Role = Literal["all", "shard", "aggregator"]


def files_for(
    manifest: Manifest, role: Role, repetitions: Collection[int] | None = None
) -> list[str]:
    """Names of the files that a server reads, besides the manifest.

    Args:
        manifest: of the bundle.
        role: what the server is; ``all`` for every file.
        repetitions: those that a shard holds; all where not given.

    Raises:
        InvalidInput: if the bundle has no such repetition.
    """
    if role == "all":
        return sorted(manifest.files)
    if role == "aggregator":
        return [BUCKETS_FILE, CATALOG_FILE, FEATURES_FILE]
    held = range(manifest.num_repetitions) if repetitions is None else sorted(set(repetitions))
    for repetition in held:
        if not 0 <= repetition < manifest.num_repetitions:
            raise InvalidInput(
                "repetition",
                f"{repetition} is not in the bundle, which has 0 to {manifest.num_repetitions - 1}",
            )
    return [FEATURES_FILE, *(repetition_file(repetition) for repetition in held)]

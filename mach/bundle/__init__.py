"""The bundle on disk: a trained model, complete, immutable and checked by content.

See ``docs/architecture.md`` for the list of files. :class:`Bundle` reads, :func:`seal`
turns a staging directory into a bundle.
"""

from mach.bundle.catalog import Catalog, write_catalog
from mach.bundle.manifest import (
    BUCKETS_FILE,
    CATALOG_FILE,
    FEATURES_FILE,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    parse_manifest,
    repetition_file,
)
from mach.bundle.reader import Bundle
from mach.bundle.roles import Role, files_for
from mach.bundle.writer import hash_blocks, hash_file, seal, write_features

__all__ = [
    "BUCKETS_FILE",
    "CATALOG_FILE",
    "FEATURES_FILE",
    "MANIFEST_FILE",
    "MAX_MANIFEST_BYTES",
    "Bundle",
    "Catalog",
    "FileEntry",
    "Manifest",
    "Role",
    "files_for",
    "hash_blocks",
    "hash_file",
    "parse_manifest",
    "repetition_file",
    "seal",
    "write_catalog",
    "write_features",
]

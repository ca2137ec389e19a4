"""Opening a bundle and refusing one that is not what its manifest says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mach.bundle.catalog import Catalog
from mach.bundle.manifest import (
    BUCKETS_FILE,
    CATALOG_FILE,
    FEATURES_FILE,
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    Manifest,
    parse_manifest,
    repetition_file,
)
from mach.bundle.writer import hash_file
from mach.errors import BundleError, InvalidInput
from mach.features import Featurizer
from mach.hashing import UniversalHash

if TYPE_CHECKING:
    from mach.merge import BucketTable, MergeRule

__all__ = ["Bundle"]


def _check_kind(file: Path) -> None:
    """A file of a bundle lies in its directory: a link could lead anywhere, a pipe never ends."""
    if file.is_symlink():
        raise BundleError(f"{file} is a link; the files of a bundle lie in its directory")
    if not file.is_file():
        raise BundleError(f"{file} is missing" if not file.exists() else f"{file} is no file")


class Bundle:
    """A bundle on disk. Opening reads the manifest and the files' sizes; the rest on demand."""

    def __init__(self, path: Path, manifest: Manifest, files: Sequence[str]) -> None:
        self.path = path
        self.manifest = manifest
        self.files = tuple(files)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        files: Callable[[Manifest], Iterable[str]] | None = None,
    ) -> Bundle:
        """Read the manifest of the bundle at ``path``.

        Args:
            path: its directory.
            files: which files must be there, see :func:`mach.bundle.files_for`; all by default.

        Raises:
            BundleError: if there is no bundle, its format is not supported, the manifest is
                damaged, or a file is missing, is a link or has another length.
        """
        path = Path(path)
        try:
            if not path.is_dir():
                raise BundleError(f"there is no bundle at {path}: no such directory")
            size = (path / MANIFEST_FILE).stat().st_size
            _check_kind(path / MANIFEST_FILE)
            if size > MAX_MANIFEST_BYTES:
                raise BundleError(f"{path / MANIFEST_FILE} is too long to be a manifest")
            text = (path / MANIFEST_FILE).read_bytes()
        except OSError as error:
            raise BundleError(f"there is no bundle at {path}: {MANIFEST_FILE}: {error}") from error
        manifest = parse_manifest(text, str(path / MANIFEST_FILE))
        names = sorted(manifest.files if files is None else files(manifest))
        bundle = cls(path, manifest, names)
        for name in names:
            bundle._check_size(name, manifest.files[name].size)
        return bundle

    def _check_size(self, name: str, expected: int) -> None:
        file = self.path / name
        _check_kind(file)
        if (size := file.stat().st_size) != expected:
            raise BundleError(f"{file} has {size} bytes, the manifest says {expected}")

    @property
    def version(self) -> str:
        """The bundle version."""
        return self.manifest.version

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Hash files and compare with the manifest.

        Args:
            names: which files; all that :meth:`open` asked for where not given.

        Raises:
            BundleError: if a file differs from the manifest.
        """
        for name in self.files if names is None else names:
            try:
                found = hash_file(self.path / name)
            except OSError as error:
                raise BundleError(f"{self.path / name} cannot be read: {error}") from error
            if found != self.manifest.files[name]:
                raise BundleError(f"{self.path / name} differs from the manifest: it is corrupt")

    def read_model(self, repetition: int) -> bytes:
        """The ONNX model of a repetition, verified: what is returned is what was hashed.

        Raises:
            InvalidInput: if the bundle has no such repetition.
            BundleError: if the file differs from the manifest.
        """
        name = self._repetition_file(repetition)
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / name} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise BundleError(f"{self.path / name} differs from the manifest: it is corrupt")
        return data

    def model_size(self, repetition: int) -> int:
        """Bytes of a repetition's ONNX file.

        Raises:
            InvalidInput: if the bundle has no such repetition.
        """
        return self.manifest.files[self._repetition_file(repetition)].size

    def _repetition_file(self, repetition: int) -> str:
        if not 0 <= repetition < self.manifest.num_repetitions:
            raise InvalidInput(
                "repetition",
                f"{repetition} is not in the bundle, which has "
                f"0 to {self.manifest.num_repetitions - 1}",
            )
        return repetition_file(repetition)

    @cached_property
    def featurizer(self) -> Featurizer:
        """Text to feature vectors; the file is verified first."""
        self.verify([FEATURES_FILE])
        try:
            with pa.memory_map(str(self.path / FEATURES_FILE)) as source:
                table = pa.ipc.open_file(source).read_all()
            featurizer = Featurizer.from_arrow(self.manifest.features, table)
        except (pa.ArrowInvalid, OSError, InvalidInput) as error:
            raise BundleError(f"{self.path / FEATURES_FILE} cannot be read: {error}") from error
        if featurizer.num_features != self.manifest.num_features:
            raise BundleError(
                f"{self.path / FEATURES_FILE} has {featurizer.num_features} features, "
                f"the manifest says {self.manifest.num_features}"
            )
        return featurizer

    @cached_property
    def catalog(self) -> Catalog:
        """Products in class order; call :meth:`verify` first where the disk is not trusted."""
        catalog = Catalog.open(self.path / CATALOG_FILE)
        if len(catalog) != self.manifest.num_classes:
            raise BundleError(
                f"{self.path / CATALOG_FILE} has {len(catalog)} products, "
                f"the manifest says {self.manifest.num_classes}"
            )
        return catalog

    @cached_property
    def hash(self) -> UniversalHash:
        """The hash functions of all repetitions."""
        try:
            return UniversalHash.from_manifest(
                self.manifest.num_classes, self.manifest.num_buckets, self.manifest.hash
            )
        except (InvalidInput, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{self.path / MANIFEST_FILE}: {error}") from error

    @cached_property
    def merge_rule(self) -> MergeRule:
        """How scores of repetitions become scores of products."""
        from mach.merge import MergeRule  # noqa: PLC0415 - shards do without it and numba

        try:
            return MergeRule.from_manifest(self.manifest.merge)
        except (InvalidInput, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{self.path / MANIFEST_FILE}: {error}") from error

    @cached_property
    def buckets(self) -> BucketTable:
        """The product-to-bucket table, memory-mapped."""
        from mach.merge import BucketTable  # noqa: PLC0415 - shards do without it and numba

        table = BucketTable.open(self.path / BUCKETS_FILE)
        expected = (
            self.manifest.num_classes,
            self.manifest.num_buckets,
            self.manifest.num_repetitions,
        )
        if (table.num_classes, table.num_buckets, table.num_repetitions) != expected:
            raise BundleError(f"{self.path / BUCKETS_FILE} does not fit the manifest")
        return table

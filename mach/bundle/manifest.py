"""``manifest.json``: what a bundle is, and the hash of every file in it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mach.errors import BundleError
from mach.features import FeatureSettings

__all__ = [
    "BUCKETS_FILE",
    "CATALOG_FILE",
    "FEATURES_FILE",
    "FORMAT_VERSION",
    "MANIFEST_FILE",
    "MAX_MANIFEST_BYTES",
    "FileEntry",
    "Manifest",
    "parse_manifest",
    "repetition_file",
]

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
#: A manifest names at most some thousand files; more than this is not one.
MAX_MANIFEST_BYTES = 16 << 20
CATALOG_FILE = "catalog.arrow"
FEATURES_FILE = "features.arrow"
BUCKETS_FILE = "buckets.bin"

#: Fields that describe how a bundle came to be, not what it answers: outside its version.
_PROVENANCE = {"version", "created", "training", "libraries"}


def repetition_file(repetition: int) -> str:
    """The name of a repetition's ONNX file."""
    return f"repetition-{repetition:03d}.onnx"


class FileEntry(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of its bytes."""
    size: int = Field(ge=0)
    """Its length in bytes."""


class Manifest(BaseModel):
    """What a bundle is. ``version`` is the hash of all that determines its answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2]
    """Version of the bundle format."""
    version: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 over the fields that determine answers, file hashes included."""
    num_classes: int = Field(ge=1)
    """K, products in the catalog."""
    num_buckets: int = Field(ge=1)
    """B."""
    num_repetitions: int = Field(ge=1, le=1000)
    """R."""
    num_features: int = Field(ge=1)
    """F, features of a query vector."""
    assignment: Literal["hash", "explicit"]
    """Whether ``buckets.bin`` follows from ``hash`` or was assigned some other way."""
    hash: dict[str, Any]
    """The hash family and its parameters."""
    features: FeatureSettings
    """How text becomes slots."""
    merge: dict[str, Any]
    """The merge rule."""
    files: dict[str, FileEntry]
    """Every other file of the bundle, by its name."""
    created: str
    """When it was sealed, ISO 8601, UTC."""
    training: dict[str, Any]
    """Settings and metrics of the training run."""
    libraries: dict[str, str]
    """Versions of the libraries that wrote it."""

    @field_validator("files")
    @classmethod
    def _plain_names(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for name in files:
            if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{name!r} is not a plain file name")
        return files

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        needed = {CATALOG_FILE, FEATURES_FILE, BUCKETS_FILE}
        needed.update(repetition_file(r) for r in range(self.num_repetitions))
        if missing := sorted(needed - self.files.keys()):
            raise ValueError(f"files lacks {', '.join(missing)}")
        if self.version != self.compute_version():
            raise ValueError("version does not match the content")
        return self

    def compute_version(self) -> str:
        """The version that the content calls for.

        Only what was written counts: a field that a later release adds with a default leaves
        the versions of older bundles alone.
        """
        return self._version_of(self.model_dump(mode="json", exclude_unset=True))

    @staticmethod
    def _version_of(fields: dict[str, Any]) -> str:
        content = {name: value for name, value in fields.items() if name not in _PROVENANCE}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @classmethod
    def build(cls, **fields: Any) -> Manifest:
        """A manifest with its version worked out; ``fields`` are all the others but ``format``."""
        fields["format"] = FORMAT_VERSION
        content = cls.model_construct(**fields, version="").model_dump(mode="json")
        return cls.model_validate(content | {"version": cls._version_of(content)})

    def to_json(self) -> str:
        """The text of ``manifest.json``: what was written, which its version is of."""
        fields = self.model_dump(mode="json", exclude_unset=True)
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest.

    Args:
        data: the content of ``manifest.json``.
        where: its path or URL, for messages.

    Raises:
        BundleError: if it is damaged or of a format that this program does not read.
    """
    try:
        fields = json.loads(data)
        if isinstance(fields, dict) and fields.get("format") != FORMAT_VERSION:
            raise BundleError(
                f"{where} has bundle format {fields.get('format')!r}, "
                f"this program reads format {FORMAT_VERSION}"
            )
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "content"
        raise BundleError(f"{where}: {field}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON: {error}") from error

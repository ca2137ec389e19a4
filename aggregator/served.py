"""All that depends on the bundle being served, so that it can be exchanged as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aggregator.restriction import Restrictions
from mach.bundle import BUCKETS_FILE, CATALOG_FILE, Bundle, files_for
from mach.merge import TopK

__all__ = ["Expected", "ServedBundle"]


@dataclass(frozen=True)
class Expected:
    """What a shard must hold to be used."""

    bundle_version: str
    num_repetitions: int
    num_buckets: int
    num_features: int


class ServedBundle:
    """A bundle, verified and ready: featurizer, index and catalog.

    Every query keeps the one it started with, so its features, shards, index and catalog
    are those of one version.

    Attributes:
        bundle: the bundle.
        version: its version.
        manifest: its manifest.
        featurizer: text to features.
        rule: the merge rule.
        top_k: the search over the index, compiled.
        catalog: products.
        restrictions: sets of products that searches are restricted to.
        expected: what its shards must hold.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Load what merging needs; the classifiers are not read.

        Raises:
            BundleError: if a file differs from the manifest or cannot be read.
        """
        bundle.verify([CATALOG_FILE, BUCKETS_FILE])  # the featurizer verifies its own
        self.bundle = bundle
        self.version = bundle.version
        self.manifest = bundle.manifest
        self.featurizer = bundle.featurizer
        self.rule = bundle.merge_rule
        self.top_k = TopK(bundle.buckets)
        self.catalog = bundle.catalog
        self.restrictions = Restrictions(self.catalog)
        manifest = bundle.manifest
        self.expected = Expected(
            self.version, manifest.num_repetitions, manifest.num_buckets, manifest.num_features
        )

    @classmethod
    def open(cls, path: str | Path) -> ServedBundle:
        """Open the bundle at ``path``, which may lack the classifiers.

        Raises:
            BundleError: if there is none, or it is damaged.
        """
        return cls(Bundle.open(path, files=lambda manifest: files_for(manifest, "aggregator")))

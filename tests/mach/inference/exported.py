"""Bundles whose models are those that the trainer exports, without training."""

from __future__ import annotations

import shutil
from itertools import cycle
from pathlib import Path

import numpy as np

from mach.bundle import Bundle, repetition_file
from mach.bundle.manifest import MANIFEST_FILE
from mach.bundle.writer import seal
from tests.bundles import make_bundle
from trainer.export import Weights, build_model
from trainer.loss import Loss

HIDDEN = 24
_KEPT = {"num_classes", "num_buckets", "num_repetitions", "num_features", "assignment", "hash",
         "features", "merge", "training", "libraries"}  # fmt: skip


def random_weights(num_features: int, hidden: int, num_buckets: int, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return Weights(
        rng.normal(size=(num_features, hidden)).astype(np.float32),
        rng.normal(scale=0.3, size=hidden).astype(np.float32),
        rng.normal(size=(num_buckets, hidden)).astype(np.float32),
        rng.normal(size=num_buckets).astype(np.float32),
    )


def exported_bundle(
    path: Path,
    quantization: str,
    *losses: Loss,
    hidden: int = HIDDEN,
) -> Bundle:
    """The tiny bundle of ``tests.bundles`` with classifiers of random weights.

    Repetitions take turns in ``losses``, softmax if there are none.
    """
    plain = make_bundle(path.with_name(f"{path.name}-plain"), num_classes=120, num_repetitions=3)
    staging = path.with_name(f".{path.name}.staging")
    shutil.copytree(plain.path, staging)
    (staging / MANIFEST_FILE).unlink()
    manifest = plain.manifest
    turns = cycle(losses or ("softmax",))
    for repetition in range(manifest.num_repetitions):
        weights = random_weights(manifest.num_features, hidden, manifest.num_buckets, repetition)
        model = build_model(weights, plain.hash, repetition, quantization, next(turns))
        (staging / repetition_file(repetition)).write_bytes(model.SerializeToString())
    seal(staging, path, **{name: getattr(manifest, name) for name in _KEPT})
    return Bundle.open(path)

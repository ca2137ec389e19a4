"""Small bundles that really find products, made in milliseconds without training.

A repetition's model counts: the score of a bucket is the sum, over the query's features, of
how much more often the feature occurs in titles of the bucket's products than elsewhere. So a
product's own title finds it, which the tests of whole paths rely on.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mach.bundle import BUCKETS_FILE, CATALOG_FILE, FEATURES_FILE, Bundle, repetition_file
from mach.bundle.catalog import write_catalog
from mach.bundle.writer import seal, write_features
from mach.features import FeatureSettings, SlotCounter
from mach.hashing import UniversalHash
from mach.merge import BucketTable, MergeRule

BRANDS = ["acme", "bolt", "cedar", "delta", "ember", "falcon", "granite", "harbor"]
KINDS = ["drill", "lamp", "kettle", "tent", "jacket", "keyboard", "bicycle"]
COLORS = ["red", "green", "blue", "black", "white"]
CATEGORIES = ["tools", "light", "kitchen", "outdoor", "clothing", "office", "sport"]


def make_catalog(num_classes: int) -> pa.Table:
    """Products P00000, P00001, … with title, category, price, in_stock."""
    rows = range(num_classes)
    kinds = [i % len(KINDS) for i in rows]
    return pa.table(
        {
            "product_id": [f"P{i:05d}" for i in rows],
            "title": [
                f"{BRANDS[i // 7 % len(BRANDS)]} {KINDS[kind]} {COLORS[i // 3 % 5]} model{i}"
                for i, kind in zip(rows, kinds, strict=True)
            ],
            "category": [CATEGORIES[kind] for kind in kinds],
            "price": [round(5 + 195 * ((i * 37) % 101) / 100, 2) for i in rows],
            "in_stock": [i % 4 != 3 for i in rows],
        }
    )


def make_model(
    weights: NDArray[np.float32],
    properties: dict[str, object],
    *,
    input_names: tuple[str, str] = ("indices", "values"),
) -> bytes:
    """An ONNX model: log-softmax of the value-weighted sum of rows of ``weights`` (F, B)."""
    indices, values = input_names
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["weights", indices], ["rows"]),
            helper.make_node("Unsqueeze", [values, "last"], ["columns"]),
            helper.make_node("Mul", ["rows", "columns"], ["parts"]),
            helper.make_node("ReduceSum", ["parts", "width"], ["scores"], keepdims=0),
            helper.make_node("LogSoftmax", ["scores"], ["log_probabilities"], axis=1),
        ],
        "repetition",
        [
            helper.make_tensor_value_info(indices, TensorProto.INT32, ["batch", "width"]),
            helper.make_tensor_value_info(values, TensorProto.FLOAT, ["batch", "width"]),
        ],
        [
            helper.make_tensor_value_info(
                "log_probabilities", TensorProto.FLOAT, ["batch", weights.shape[1]]
            )
        ],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([2], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "width"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {name: str(value) for name, value in properties.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_bundle(
    path: Path,
    *,
    num_classes: int = 200,
    num_buckets: int = 16,
    num_repetitions: int = 4,
    seed: int = 0,
) -> Bundle:
    """A bundle at ``path``, which must not exist; another seed gives another version."""
    staging = path.parent / f".{path.name}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    catalog = make_catalog(num_classes)
    write_catalog(staging / CATALOG_FILE, catalog)
    titles = catalog["title"].to_pylist()
    settings = FeatureSettings(word_ngrams=2, hash_bits=18)
    counter = SlotCounter(settings)
    counter.add(titles)
    featurizer = counter.featurizer()
    write_features(staging / FEATURES_FILE, featurizer)
    hashes = UniversalHash.draw(num_classes, num_buckets, num_repetitions, seed)
    BucketTable.from_hash(hashes, num_classes).save(staging / BUCKETS_FILE)

    batch = featurizer.batch(titles)
    classes = np.repeat(np.arange(num_classes), np.diff(batch.splits))
    rng = np.random.default_rng(seed)
    for repetition in range(num_repetitions):
        counts = np.zeros((featurizer.num_features, num_buckets), np.float32)
        np.add.at(counts, (batch.indices, hashes.buckets(repetition, classes)), 1)
        noise = rng.normal(scale=0.01, size=counts.shape)
        weights = 4 * (np.log1p(counts) - np.log1p(counts).mean(axis=1, keepdims=True)) + noise
        properties = {
            "mach.format": 1,
            "mach.repetition": repetition,
            "mach.num_buckets": num_buckets,
            "mach.num_features": featurizer.num_features,
            "mach.num_classes": num_classes,
        }
        model = make_model(weights.astype(np.float32), properties)
        (staging / repetition_file(repetition)).write_bytes(model)
    seal(
        staging,
        path,
        num_classes=num_classes,
        num_buckets=num_buckets,
        num_repetitions=num_repetitions,
        num_features=featurizer.num_features,
        assignment="hash",
        hash=hashes.to_manifest(),
        features=settings,
        merge=MergeRule(0.0).to_manifest(),
        training={},
        libraries={},
    )
    return Bundle.open(path)

"""Examples on disk come back, in order or shuffled, each once."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mach.errors import DataError
from mach.features import SparseBatch
from trainer import examples as module
from trainer.examples import Examples, ExamplesReader, ExamplesWriter


def make(n, rng, first=0):
    """Examples whose weight is their number."""
    features = SparseBatch.from_rows(
        (np.arange(k, dtype=np.int32) + i, rng.random(k).astype(np.float32))
        for i, k in enumerate(rng.integers(0, 4, n))
    )
    splits = np.concatenate([[0], np.cumsum(rng.integers(1, 3, n))]).astype(np.int64)
    return Examples(
        features,
        rng.integers(0, 9, splits[-1]).astype(np.int32),
        rng.random(splits[-1]).astype(np.float32),
        splits,
        (1 + first + np.arange(n)).astype(np.float32),
    )


def rows_of(examples):
    f, s = examples.features, examples.class_splits
    return {
        float(examples.weights[i]): (
            f.indices[f.splits[i] : f.splits[i + 1]].tolist(),
            f.values[f.splits[i] : f.splits[i + 1]].tolist(),
            examples.classes[s[i] : s[i + 1]].tolist(),
            examples.class_weights[s[i] : s[i + 1]].tolist(),
        )
        for i in range(len(examples))
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.integers(0, 20), max_size=5), st.integers(1, 12), st.integers(0, 1000))
def test_round_trip(tmp_path_factory, monkeypatch, sizes, batch_size, seed):
    monkeypatch.setattr(module, "_PIECE", 4)
    monkeypatch.setattr(module, "_WINDOW", 8)
    rng = np.random.default_rng(seed)
    directory = tmp_path_factory.mktemp("examples") / "train"
    written = {}
    with ExamplesWriter(directory) as writer:
        for size in sizes:
            part = make(size, rng, len(written))
            written |= rows_of(part)
            writer.append(part)
    reader = ExamplesReader(directory)
    assert len(reader) == sum(sizes)
    ordered, shuffled = {}, {}
    for batch in reader.in_order(batch_size):
        ordered |= rows_of(batch)
    assert list(ordered.items()) == list(written.items())
    batches = list(reader.shuffled(batch_size, np.random.default_rng(seed)))
    for batch in batches:
        assert not rows_of(batch).keys() & shuffled.keys()
        shuffled |= rows_of(batch)
    assert shuffled == written
    assert len(batches) == reader.num_batches(batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_shuffling_is_random_and_repeatable(tmp_path):
    with ExamplesWriter(tmp_path / "train") as writer:
        writer.append(make(1000, np.random.default_rng(0)))
    reader = ExamplesReader(tmp_path / "train")

    def order(seed):
        rng = np.random.default_rng(seed)
        return np.concatenate([b.weights for b in reader.shuffled(64, rng)]).tolist()

    assert order(1) == order(1) != order(2)
    assert abs(np.corrcoef(order(1), np.arange(1000))[0, 1]) < 0.1
    assert reader.mean_weight == 500.5


def test_damage_is_noticed(tmp_path):
    with ExamplesWriter(tmp_path / "train") as writer:
        writer.append(make(10, np.random.default_rng(0)))
    path = tmp_path / "train" / "classes.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="its length is wrong"):
        ExamplesReader(tmp_path / "train")
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        ExamplesReader(tmp_path / "train")


def test_an_unfinished_directory_cannot_be_opened(tmp_path):
    with pytest.raises(RuntimeError), ExamplesWriter(tmp_path / "train") as writer:  # noqa: PT012
        writer.append(make(10, np.random.default_rng(0)))
        raise RuntimeError
    with pytest.raises(DataError):
        ExamplesReader(tmp_path / "train")
    assert "examples.json" not in json.dumps([p.name for p in (tmp_path / "train").iterdir()])

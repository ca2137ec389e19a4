"""Checkpoints are read whole or not at all."""

import numpy as np
import pytest

from mach.errors import ConfigError
from trainer.checkpoint import read_checkpoint, write_checkpoint

ARRAYS = {
    "steps": np.array(7),
    "model.embedding": np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32),
    "empty": np.empty((0, 3), np.float32),
}


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "c.npz", ARRAYS, {"epoch": 3, "history": [{"loss": 0.5}]})
    return tmp_path / "c.npz"


def test_round_trip(path):
    arrays, progress = read_checkpoint(path)
    assert progress == {"epoch": 3, "history": [{"loss": 0.5}]}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    assert list(path.parent.iterdir()) == [path]


def test_no_file(tmp_path):
    assert read_checkpoint(tmp_path / "none.npz") is None


def test_any_truncation_is_noticed(path):
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        assert read_checkpoint(path) is None


def test_any_flipped_byte_is_noticed_or_harmless(path):
    """Zip headers hold dates and the like; no flip may change an array."""
    data = path.read_bytes()
    for at in range(0, len(data), 11):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        found = read_checkpoint(path)
        if found is not None:
            for name, array in found[0].items():
                if name in ARRAYS:
                    np.testing.assert_array_equal(array, ARRAYS[name])


def test_pickles_are_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("executed",))

    np.savez(tmp_path / "c.npz", progress=np.array([Bomb()], object))
    assert read_checkpoint(tmp_path / "c.npz") is None


def test_a_missing_directory_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises((ConfigError, OSError)):
        write_checkpoint(tmp_path / "no" / "c.npz", ARRAYS, {})
    assert list(tmp_path.iterdir()) == []

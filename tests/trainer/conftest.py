"""A tiny store, and settings that train in a second."""

import pytest

from mach.simulation import simulate_store
from trainer.progress import Reporter
from trainer.run import Job
from trainer.settings import TrainSettings


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return simulate_store(tmp_path_factory.mktemp("store"), 120, 2000, 3, num_held_out=300)


@pytest.fixture
def settings():
    return TrainSettings(
        repetitions=2,
        buckets=32,
        hidden=16,
        epochs=3,
        batch_size=32,
        learning_rate=0.02,
        validation_fraction=0.1,
        hash_bits=16,
        workers=1,
        checkpoint_seconds=0,
    )


@pytest.fixture
def job(store, settings, tmp_path):
    return Job([store.clicks], store.products, tmp_path / "bundle", settings)


@pytest.fixture
def silent():
    return Reporter.silent()

"""A run whose parts are processes of different machines, started in any order."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mach.bundle import Bundle
from mach.errors import Unavailable
from trainer.progress import Reporter
from trainer.run import Job, collect_bundle, prepare_data, train_one
from trainer.settings import TrainSettings

KINDS = ["drill", "lamp", "kettle", "tent", "jacket", "keyboard"]
COLORS = ["red", "green", "blue", "black"]


@pytest.fixture
def interactions(tmp_path):
    path = tmp_path / "log.csv"
    pairs = [(f"{color} {kind}", f"p-{color}-{kind}") for color in COLORS for kind in KINDS]
    path.write_text("query,product_id\n" + "".join(f"{q},{p}\n" for q, p in pairs * 3))
    return path


def test_parts_wait_for_each_other(interactions, tmp_path):
    settings = TrainSettings(repetitions=2, buckets=8, hidden=8, epochs=1)
    job = Job([interactions], None, tmp_path / "bundle", settings)
    said = [io.StringIO() for _ in range(3)]
    with ThreadPoolExecutor() as machines:
        parts = [machines.submit(collect_bundle, job, Reporter(said[0]), wait=100)]
        parts += [
            machines.submit(train_one, job, r, Reporter(said[r + 1]), wait=100) for r in (1, 0)
        ]
        deadline = time.monotonic() + 100
        while not all("waiting for" in stream.getvalue() for stream in said):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        prepare_data(job, Reporter.silent())
        manifest = parts[0].result()
    bundle = Bundle.open(job.out)
    bundle.verify()
    assert bundle.manifest == manifest
    assert manifest.num_repetitions == 2
    assert all(part.result() for part in parts)


def test_the_wait_ends(interactions, tmp_path):
    job = Job([interactions], None, tmp_path / "bundle", TrainSettings(repetitions=2))
    reporter = Reporter.silent()
    started = time.monotonic()
    with pytest.raises(Unavailable, match="the prepared data did not come within"):
        train_one(job, 0, reporter, wait=0.2)
    with pytest.raises(Unavailable, match="repetition 0 did not come within"):
        collect_bundle(job, reporter, wait=0.2)
    assert 0.4 <= time.monotonic() - started < 30

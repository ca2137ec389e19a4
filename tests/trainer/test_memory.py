"""Memory does not grow with the log."""

import os
import resource
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mach.bundle import Bundle
from trainer import featurize, gather
from trainer.prepare import prepare
from trainer.settings import TrainSettings
from trainer.spill import Spill
from trainer.tables import files


def log_of(path, rows):
    """Distinct queries of 200 products."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(500)])
    with pq.ParquetWriter(
        path, pa.schema({"query": pa.string(), "product_id": pa.string()})
    ) as out:
        for start in range(0, rows, 1_000):
            number = np.arange(start, start + 1_000)
            drawn = words[rng.integers(0, 500, (1_000, 6))]
            queries = [f"{' '.join(row)} {n}" for row, n in zip(drawn, number, strict=True)]
            out.write_table(
                pa.table({"query": queries, "product_id": [f"p{n % 200}" for n in number]})
            )
    return path


def peak_of(log, directory, settings, silent):
    """Bytes that Arrow, and NumPy and Python, held at most."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        prepare([log], None, settings, directory, silent)
        return pool.max_memory() + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


def test_preparing_eight_times_the_log_takes_the_same_memory(tmp_path, monkeypatch, silent):
    monkeypatch.setattr(files, "BATCH_ROWS", 500)
    monkeypatch.setattr(featurize, "CHUNK_ROWS", 500)
    monkeypatch.setattr(gather, "PART_BYTES", 100_000)
    defaults = {**Spill.__init__.__kwdefaults__, "buffer_bytes": 100_000}
    monkeypatch.setattr(Spill.__init__, "__kwdefaults__", defaults)
    settings = TrainSettings(
        hash_bits=12, affix_lengths=(), char_ngrams_min=0, char_ngrams_max=0, validation_max=100
    )
    small, large = (
        peak_of(log_of(tmp_path / f"{n}.parquet", n), tmp_path / str(n), settings, silent)
        for n in (2_000, 16_000)
    )
    assert large < 1.25 * small, (small, large)


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from trainer.__main__ import main
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_log_larger_than_the_memory_allowed_trains(tmp_path):
    """1.2 GB of text, no query twice, in a process that may hold 1 GB, libraries included."""
    limit = 1_000_000_000
    rng = np.random.default_rng(0)
    words = np.array([f"a-word-of-some-length-{i}" for i in range(3000)])
    drawn = words[rng.integers(0, 3000, (50_000, 12))]
    rows = [f"{' '.join(row)} COPY,{row[0]}\n" for row in drawn]
    block = "".join(rows)
    log = tmp_path / "log.csv"
    copies = 0
    with log.open("w") as file:
        file.write("query,product_id\n")
        while file.tell() < 1.2 * limit:
            file.write(block.replace("COPY", f"copy{copies}"))
            copies += 1
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("product_id\n" + "".join(f"{word}\n" for word in words))
    out = tmp_path / "bundle"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), log, "--catalog", catalog, "--out", out,
         "--repetitions", "1", "--hidden", "32", "--epochs", "1",
         "--hash-bits", "20", "--workers", "1",
         "--word-ngrams", "1", "--char-ngrams-min", "0", "--char-ngrams-max", "0"],
        # Arrow's own allocator reserves addresses far beyond what it uses.
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = Bundle.open(out).manifest.training["data"]
    assert data["rows"] == data["queries"] + data["held_out_queries"] == copies * len(rows)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"log {log.stat().st_size / 1e6:.0f} MB, peak resident {peak / 1e6:.0f} MB")
    assert max(peak, limit) < log.stat().st_size  # files that are mapped are resident, not held
    log.unlink()

"""Write the CSV files beside this one: a small simulated store, the same every time.

python examples/data/make.py
"""

import tempfile
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet

from mach.simulation import simulate_store

HERE = Path(__file__).parent

with tempfile.TemporaryDirectory() as directory:
    store = simulate_store(directory, num_products=400, num_queries=6_000, num_held_out=400)
    for source, name in (
        (store.products, "catalog.csv"),
        (store.clicks, "clicks.csv"),
        (store.held_out, "held-out.csv"),
    ):
        pyarrow.csv.write_csv(pyarrow.parquet.read_table(source), HERE / name)

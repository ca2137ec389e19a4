"""What every worker shares.

A worker is a script that runs in its own system's environment, which may hold no more than
NumPy and that system: nothing here imports this project. Two commands, each its own process so
that its time and memory are its own::

    WORKER.py train   --data DIR --model DIR --settings JSON --threads N
    WORKER.py predict --data DIR --model DIR --settings JSON --depth K --out FILE.npz

``DIR`` holds ``train.txt`` and ``dev.txt`` (one query a line), ``train.labels`` (class numbers,
separated by spaces, a line a query), ``titles.txt`` and ``titles.labels`` (the same, of the
catalog's titles, one more query a product, where the setting ``catalog_titles`` is true) and
``counts.json``. ``predict`` runs on one core. It writes
``classes``, int32, shape (queries, K), best first, filled up with -1; ``single_ms``, float64, one
latency a query for a sample of them; and ``batch_qps``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
#: Texts and how many classes are wanted, to a list or array of class numbers each, best first.
Search = Callable[[list[str], int], list[Any]]
Train = Callable[[list[str], list[list[int]], int, Path, Settings, int], None]
Load = Callable[[Path, Settings], Search]

BATCH = 256
WARM_UP = 50
TIMED = 1000


def read_lines(path: Path) -> list[str]:
    """The lines of a file; only ``\\n`` ends one."""
    text = path.read_text(encoding="utf-8", errors="strict")
    return text.removesuffix("\n").split("\n")


def on_one_core() -> None:
    """Keep this process, whatever pools its libraries start, to a single core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def time_search(search: Search, texts: list[str], depth: int) -> dict[str, Any]:
    """Every text's classes, a sample's latencies and the rate in batches."""
    import numpy as np  # noqa: PLC0415 - after the threads are limited

    for text in texts[:WARM_UP]:
        search([text], depth)
    search(texts[:BATCH], depth)
    single = []
    for position in np.linspace(0, len(texts) - 1, min(TIMED, len(texts))).astype(int):
        start = time.perf_counter()
        search([texts[position]], depth)
        single.append(time.perf_counter() - start)
    classes = np.full((len(texts), depth), -1, np.int32)
    spent = 0.0
    for first in range(0, len(texts), BATCH):
        start = time.perf_counter()
        found = search(texts[first : first + BATCH], depth)
        spent += time.perf_counter() - start
        for row, ranked in enumerate(found, start=first):
            classes[row, : len(ranked)] = ranked[:depth]
    return {
        "classes": classes,
        "single_ms": np.array(single) * 1e3,
        "batch_qps": np.float64(len(texts) / spent),
    }


def main(train: Train | None, load: Load) -> None:
    """Run the command of ``sys.argv``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["train", "predict"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.command == "train":
        if train is None:
            parser.error("this system is not trained here")
        options.model.mkdir(parents=True, exist_ok=True)
        parts = ["train", *(["titles"] if options.settings.get("catalog_titles") else [])]
        texts = [text for part in parts for text in read_lines(options.data / f"{part}.txt")]
        labels = [
            [int(number) for number in line.split()]
            for part in parts
            for line in read_lines(options.data / f"{part}.labels")
        ]
        counts = json.loads((options.data / "counts.json").read_text())
        known = counts["titled" if len(parts) > 1 else "seen"]
        train(texts, labels, known, options.model, options.settings, options.threads)
        return
    on_one_core()
    texts = read_lines(options.data / "dev.txt")
    figures = time_search(load(options.model, options.settings), texts, options.depth)
    import numpy as np  # noqa: PLC0415

    np.savez(options.out, **figures)

"""What ``benchmarks.gpu.merge`` measures."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Limits, timed
from mach.hashing import UniversalHash
from mach.merge import BucketTable, TopK
from mach.merge.simulate import flat, trained_like
from mach.merge.torch_engine import TorchTopK


@dataclass(frozen=True)
class Size:
    products: int = 49_460_000
    repetitions: int = 32
    buckets: int = 20_000
    k: int = 100
    batches: tuple[int, ...] = (1, 64)
    groups: tuple[int, ...] = (32, 64)
    seconds: float = 5.0
    checked: int = 8
    batched_from: int = 1 << 16


#: For tests, on a CPU.
SMOKE = Size(2_000, 4, 100, 10, (1, 5), (4, 32), 0.0, 5, 1)


def floors(size: Size, batch: int, group: int, limits: Limits) -> dict[str, float]:
    """What one batch must read, and how long that takes.

    Every pass reads each product's bucket in each repetition, 2 bytes, from memory; and for each of
    them a byte a query from the cache.
    """
    pairs = size.products * size.repetitions
    passes = -(-batch // group)
    memory = passes * 2 * pairs / limits.read_bytes
    cache = batch * pairs / limits.cached_bytes
    return {"memory_floor_ms": 1e3 * memory, "cache_floor_ms": 1e3 * cache}


def measure(size: Size, device: str, limits: Limits) -> dict[str, Any]:
    hashes = UniversalHash.draw(size.products, size.buckets, size.repetitions, 0)
    table = BucketTable.from_hash(hashes, size.products)
    print(f"{size.products:,} products x {size.repetitions} repetitions: copying buckets")
    started = time.perf_counter()
    engine = TorchTopK(table, device, batched_from=size.batched_from)
    if device == "cuda":
        torch.cuda.synchronize()
    built = time.perf_counter() - started
    rng = np.random.default_rng(0)
    most = max(size.batches)
    rows = []
    correct = {}
    for name, simulate in (("trained-like", trained_like), ("flat", flat)):
        host = simulate(table, most, rng)
        scores = torch.from_numpy(host).to(device)
        for batch in size.batches:
            some = scores[:batch]
            for group in size.groups if batch > min(size.groups) else size.groups[:1]:
                engine.group = group
                row = timed(lambda s=some: engine.search_batch(s, size.k), seconds=size.seconds)
                rows.append(
                    {"scores": name, "batch": batch, "group": group, "from": "device"}
                    | _judged(row, batch, floors(size, batch, group, limits))
                )
                print(_line(rows[-1]))
            engine.group = size.groups[0]
            row = timed(
                lambda n=batch, h=host: engine.search_batch(h[:n], size.k), seconds=size.seconds
            )
            rows.append(
                {"scores": name, "batch": batch, "group": engine.group, "from": "host"}
                | _judged(row, batch, floors(size, batch, engine.group, limits))
            )
            print(_line(rows[-1]))
        row = timed(
            lambda s=scores: engine._search_one(s[0], size.k, np.arange(size.repetitions), None),
            seconds=size.seconds, least=2,
        )  # fmt: skip
        rows.append(
            {"scores": name, "batch": 1, "group": 1, "from": "device, plain torch"}
            | _judged(row, 1, floors(size, 1, 1, limits))
        )
        print(_line(rows[-1]))
        correct[name] = check(engine, TopK(table), host[: size.checked], size.k)
    return {
        "products": size.products, "repetitions": size.repetitions, "buckets": size.buckets,
        "k": size.k, "kernel": engine.kernel, "build_seconds": built, "rows": rows,
        "correct": correct,
    }  # fmt: skip


def check(engine: Any, reference: TopK, scores: np.ndarray, k: int) -> dict[str, Any]:
    """Products and scores must be the CPU engine's, to the last bit."""
    equal, seconds = 0, []
    for one, found in zip(scores, engine.search_batch(scores, k), strict=True):
        started = time.perf_counter()
        expected = reference.search(one, k)
        seconds.append(time.perf_counter() - started)
        same = np.array_equal(found.classes, expected.classes)
        equal += same and np.array_equal(found.scores, expected.scores)
    if equal != len(scores):
        raise SystemExit(f"wrong: {len(scores) - equal} of {len(scores)} answers differ")
    return {"queries": len(scores), "equal": equal, "cpu_p50_ms": 1e3 * float(np.median(seconds))}


def _judged(row: dict[str, float], batch: int, floor: dict[str, float]) -> dict[str, float]:
    return row | floor | {
        "ms_a_query": row["p50_ms"] / batch,
        "times_floor": row["p50_ms"] / max(floor.values()),
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['scores']}, batch {row['batch']}, group {row['group']}, from {row['from']}: "
        f"{row['p50_ms']:.3f} ms, {row['ms_a_query']:.3f} ms a query, "
        f"{row['times_floor']:.2f} x the floor"
    )

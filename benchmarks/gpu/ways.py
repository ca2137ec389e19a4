"""The six ways that ``benchmarks.gpu.serve`` compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.gpu import torch_models
from benchmarks.gpu.device import Limits, timed
from mach.errors import MachError
from mach.features import SparseBatch
from mach.hashing import UniversalHash
from mach.inference import CudaSettings
from mach.inference.cuda import StackedRunner
from mach.inference.session import PROVIDERS, open_session
from mach.inference.stacking import RepetitionWeights, read_weights
from trainer.export import Weights, build_model
from trainer.loss import Loss


@dataclass(frozen=True)
class Size:
    features: int = 80_000
    hidden: int = 2_000
    buckets: int = 20_000
    repetitions: int = 32
    width: int = 32
    batches: tuple[int, ...] = (1, 64)
    seconds: float = 5.0
    compiles: bool = True


#: For tests, on a CPU.
SMOKE = Size(300, 16, 60, 3, 4, (1, 4), 0.0, False)


def make_model(size: Size, quantization: str, loss: Loss = "softmax") -> bytes:
    """One repetition's ONNX file; all repetitions share it, each with its own copy in memory."""
    rng = np.random.default_rng(0)
    weights = Weights(
        rng.standard_normal((size.features, size.hidden), np.float32),
        rng.standard_normal(size.hidden, np.float32),
        rng.standard_normal((size.buckets, size.hidden), np.float32) * np.float32(0.05),
        rng.standard_normal(size.buckets, np.float32),
    )
    hashes = UniversalHash.draw(size.buckets, size.buckets, size.repetitions, 0)
    return bytes(build_model(weights, hashes, 0, quantization, loss).SerializeToString())


def make_batch(size: Size, rows: int) -> SparseBatch:
    rng = np.random.default_rng(rows)
    return SparseBatch(
        rng.integers(0, size.features, rows * size.width).astype(np.int32),
        np.full(rows * size.width, size.width**-0.5, np.float32),
        np.arange(rows + 1, dtype=np.int32) * np.int32(size.width),
    )


def floors(size: Size, batch: int, model: RepetitionWeights, limits: Limits) -> dict[str, float]:
    """Bytes of weights that a batch touches, and its multiplications, at the device's rates.

    The output layer is counted in half precision, whatever a way stores; the answer's 8 bits a
    bucket must cross to the host.
    """
    output = size.hidden * size.buckets * 2 + 4 * size.buckets
    rows = batch * size.width * size.hidden * model.arrays["embedding"].itemsize
    products = 2 * batch * size.hidden * (size.buckets + size.width)
    return {
        "bytes_floor_ms": 1e3 * size.repetitions * (output + rows) / limits.read_bytes,
        "flops_floor_ms": 1e3 * size.repetitions * products / limits.fp16_flops,
        "copy_floor_ms": 1e3 * size.repetitions * batch * size.buckets / limits.host_bytes,
    }


def plain(size: Size, model: bytes, device: str) -> Callable[[SparseBatch], Any]:
    """A session a repetition, arrays in and out, one after the other."""
    sessions = [
        open_session(model, "the model", "cuda" if device == "cuda" else "cpu", 1)[0]
        for _ in range(size.repetitions)
    ]

    def run(batch: SparseBatch) -> Any:
        indices, values = batch.padded()
        feed = {"indices": indices, "values": values}
        return [session.run(["log_probabilities"], feed)[0] for session in sessions]

    return run


def stacked(
    size: Size, weights: RepetitionWeights, device: str, graphs: bool
) -> Callable[[SparseBatch], Any]:
    """What a shard does, with and without CUDA graphs."""
    settings = CudaSettings(max_rows=max(size.batches), widths=(size.width,), graphs=graphs)
    runner = StackedRunner(
        range(size.repetitions), weights.layout, settings, "cuda" if device == "cuda" else "cpu"
    )
    for count in runner.stacks:
        runner.add([weights] * count)
    runner.warm_up()
    return runner.run_encoded


def measure(
    size: Size, device: str, quantization: str, limits: Limits, loss: Loss
) -> dict[str, Any]:
    print(f"making a model: {size}")
    model = make_model(size, quantization, loss)
    weights = read_weights(model)
    assert weights is not None
    ways: dict[str, Callable[[], Callable[[SparseBatch], Any]]] = {
        "ONNX Runtime, session a repetition": lambda: plain(size, model, device),
        "stacked, IO binding": lambda: stacked(size, weights, device, False),
        "stacked, IO binding, CUDA graphs": lambda: stacked(size, weights, device, True),
        "PyTorch eager": lambda: torch_models.eager(weights, size.repetitions, device),
        "PyTorch compiled": lambda: torch_models.compiled(weights, size.repetitions, device),
        "PyTorch compiled, CUDA graphs": lambda: torch_models.compiled(
            weights, size.repetitions, device, graphs=True
        ),
    }
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name, prepare in ways.items():
        reason = why_not(name, size, device)
        if not reason:
            try:
                rows += time_way(name, prepare(), size, weights, limits)
            except (MachError, RuntimeError) as error:  # one way's trouble is not the others'
                reason = f"{type(error).__name__}: {error}"
        if reason:
            left_out[name] = reason
            print(f"{name}: left out: {reason}")
        torch_models.release(device)
    return {
        "features": size.features, "hidden": size.hidden, "buckets": size.buckets,
        "repetitions": size.repetitions, "width": size.width, "quantization": quantization,
        "loss": loss,
        "rows": rows, "left_out": left_out,
    }  # fmt: skip


def why_not(name: str, size: Size, device: str) -> str:
    """Why a way cannot run here; empty if it can."""
    if name.startswith("PyTorch compiled") and not size.compiles:
        return "compiling takes longer than a smoke test may"
    has_cuda = PROVIDERS["cuda"] in ort.get_available_providers()
    if "PyTorch" not in name and device == "cuda" and not has_cuda:
        return "the installed ONNX Runtime has no CUDA: pip install onnxruntime-gpu instead"
    return ""


def time_way(
    name: str,
    run: Callable[[SparseBatch], Any],
    size: Size,
    weights: RepetitionWeights,
    limits: Limits,
) -> list[dict[str, Any]]:
    rows = []
    for count in size.batches:
        batch = make_batch(size, count)
        floor = floors(size, count, weights, limits)
        row = {"way": name, "batch": count}
        row |= timed(lambda b=batch: run(b), seconds=size.seconds) | floor
        row["queries_per_second"] = 1e3 * count / row["p50_ms"]
        bound = max(floor["bytes_floor_ms"], floor["flops_floor_ms"])
        row["times_floor"] = row["p50_ms"] / bound
        rows.append(row)
        print(
            f"{name}, batch {count}: p50 {row['p50_ms']:.3f} ms, p99 {row['p99_ms']:.3f} ms, "
            f"{row['queries_per_second']:,.0f} queries/s, {row['times_floor']:.2f} x {bound:.3f} ms"
        )
    return rows

"""How many answers of a GPU's program are those of the models on a CPU.

    python -m benchmarks.gpu.agreement BUNDLE QUERIES [--smoke]

QUERIES is a file of interactions with real queries. Each query's k best products are merged from
both; counted are queries whose k best are the same set, and the products shared. With --smoke or
--device cpu the GPU's rounding is imitated in NumPy: half precision of the hidden units, of the
output weights and of their products, whose sums are single precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.device import choose_device, measure_limits, needed, parser, write_result

KS = (1, 10, 100)
QUERIES = 2_000


def imitated(bundle: Any, batch: Any) -> np.ndarray:
    """What a GPU answers, float32 of shape (R, n, B); ``mach/inference/program.py`` in NumPy."""
    from mach.inference.stacking import read_weights, stack  # noqa: PLC0415

    answers = []
    for repetition in range(bundle.manifest.num_repetitions):
        model = read_weights(bundle.read_model(repetition))
        if model is None:
            raise SystemExit("the bundle's models are not those that the trainer exports")
        weights = stack([model], "fp16")
        values = batch.values * weights["scales"][batch.indices]
        hidden = np.zeros((len(batch), weights["embedding"].shape[1]), np.float32)
        for row, (start, stop) in enumerate(zip(batch.splits, batch.splits[1:], strict=False)):
            rows = weights["embedding"][batch.indices[start:stop]].astype(np.float32)
            hidden[row] = values[start:stop] @ rows
        hidden = np.maximum(hidden + weights["hidden_bias"][0], 0)
        scale = np.maximum(hidden.max(axis=1, keepdims=True), np.float32(1e-30))
        units = hidden / scale
        if model.quantization == "int8":
            scale = scale / np.float32(127)
            units, scale = np.rint(hidden / scale) / np.float32(128), scale * np.float32(128)
        units = units.astype(np.float16).astype(np.float32)
        scores = (units @ weights["output"][0].astype(np.float32)).astype(np.float16)
        logits = scores.astype(np.float32) * scale + weights["output_bias"][0]
        if model.loss == "one-vs-all":
            logits = -np.logaddexp(np.float32(0), -logits)
        logits -= logits.max(axis=1, keepdims=True)
        answers.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return np.stack(answers)


def measure(path: Path, queries: Path, device: str, most: int) -> dict[str, Any]:
    from mach.bundle import Bundle  # noqa: PLC0415
    from mach.inference import CudaSettings, LoadedBundle  # noqa: PLC0415
    from mach.inference.cuda import StackedRunner  # noqa: PLC0415
    from mach.merge import TopK  # noqa: PLC0415
    from trainer.interactions import read_queries  # noqa: PLC0415

    bundle = Bundle.open(path)
    texts = [text for text, _ in read_queries([queries])][:most]
    batch = bundle.featurizer.batch(texts)
    plain = LoadedBundle.load(bundle, range(bundle.manifest.num_repetitions))
    cpu = np.stack([*plain.run(batch, plain.repetitions).values()])
    if device == "cuda":
        runner = StackedRunner.load(bundle, plain.repetitions, CudaSettings())
        if runner is None:
            raise SystemExit("the bundle's models are not those that the trainer exports")
        ours = runner.run(batch)
    else:
        ours = imitated(bundle, batch)
    engine, rule = TopK(bundle.buckets), bundle.merge_rule
    rows = {}
    for k in KS:
        shared = []
        for query in range(len(texts)):
            a, b = (
                set(engine.search(rule.transform(rows[:, query].copy()), k).classes.tolist())
                for rows in (cpu, ours)
            )
            shared.append(len(a & b) / max(1, len(a)))
        rows[str(k)] = {
            "same_set": float(np.mean(np.array(shared) == 1)), "shared": float(np.mean(shared))
        }  # fmt: skip
        print(f"k = {k}: the same set for {rows[str(k)]['same_set']:.2%} of {len(texts)} queries, "
              f"{rows[str(k)]['shared']:.3%} of products shared")  # fmt: skip
    difference = float(np.abs(cpu - ours).max())
    return {
        "queries": len(texts), "repetitions": len(cpu), "imitated": device != "cuda",
        "quantization": bundle.manifest.training.get("settings", {}).get("quantization"),
        "largest_difference": difference, "k": rows,
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__, "agreement")
    options.add_argument("bundle", type=Path)
    options.add_argument("queries", type=Path)
    chosen = options.parse_args()
    device = choose_device(chosen.device, chosen.smoke)
    with needed("-e '.[gpu,train]'"):
        most = 50 if chosen.smoke else QUERIES
        result = measure(chosen.bundle, chosen.queries, device, most)
    limits = measure_limits(device, smoke=device != "cuda")
    write_result(chosen.out, device, limits, result)


if __name__ == "__main__":
    main()

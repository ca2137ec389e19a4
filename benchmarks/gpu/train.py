"""Training at the paper's scale on one card, held against the card's own limits.

    python -m benchmarks.gpu.train [--smoke] [--seconds 40] [--epochs 10]

80,000 features, 2,000 hidden units, 20,000 buckets, 32 repetitions: 6.4 billion parameters;
70 million queries over 49.46 million products (Medini et al., NeurIPS 2019, section 4.2), generated
as they are needed. Measures seconds per million queries of a repetition and projects all of it;
then, with less time each, what the group, the batch size and the engine are worth, and a small
model as of a store. About seven minutes.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import device as gpu
from benchmarks.gpu.arithmetic import floor, project
from benchmarks.gpu.queries import generated_queries
from mach.hashing import UniversalHash
from trainer.batched.batch import batches_of
from trainer.batched.memory import Sizes
from trainer.batched.model import ClassifierGroup
from trainer.batched.prefetch import Prefetcher, StepClock
from trainer.batched.stepper import PIECE_ELEMENTS, GroupStepper
from trainer.loss import Loss, TargetRows
from trainer.model import Classifier
from trainer.optimizer import Stepper

_RATE = 1e-3
#: As in the paper. The trainer's default, one-vs-all, takes the same products and is a variant.
LOSS: Loss = "softmax"
_WARM_UP = 5


@dataclass(frozen=True)
class Scale:
    """What is trained."""

    features: int
    hidden: int
    buckets: int
    products: int
    queries: int
    repetitions: int
    batch_size: int


PAPER = Scale(80_000, 2_000, 20_000, 49_460_000, 70_000_000, 32, 8_192)
STORE = Scale(68_000, 256, 1_900, 35_000, 1_000_000, 32, 512)
SMOKE = Scale(500, 16, 64, 1_000, 10_000, 4, 32)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def group_of(
    scale: Scale, size: int, device: torch.device, *, bf16: bool, piece: int, loss: Loss
) -> GroupStepper:
    """A group with weights drawn on the device."""
    model = ClassifierGroup(
        size,
        scale.features,
        scale.hidden,
        scale.buckets,
        loss=loss,
        hidden_dropout=0.15,
        device=device,
    )
    model.embedding.normal_(0.0, 0.02)
    model.output.normal_(0.0, scale.hidden**-0.5)
    hash = UniversalHash.draw(scale.products, scale.buckets, size, 0)
    return GroupStepper(
        model, hash, tuple(range(size)), bf16=bf16, embedding_rate=10.0, piece_elements=piece
    )


def run_batched(
    scale: Scale,
    size: int,
    device: torch.device,
    seconds: float,
    *,
    bf16: bool = True,
    piece: int = PIECE_ELEMENTS,
    loss: Loss = LOSS,
    profile: bool = False,
) -> dict[str, Any]:
    """Steps of a group, fed as training feeds them, for so many seconds."""
    stepper = group_of(scale, size, device, bf16=bf16, piece=piece, loss=loss)
    source = batches_of(
        generated_queries(scale.features, scale.products, scale.batch_size), scale.features, loss
    )
    clock, losses, steps = StepClock(device), torch.zeros(size, device=device), 0
    with Prefetcher(source, device) as batches:
        taken = iter(batches)
        for batch in itertools.islice(taken, _WARM_UP):
            first = stepper.step(batch, _RATE)
        wait(device)
        started = time.perf_counter()
        clock.start()
        for batch in taken:
            clock.mark()
            losses = stepper.step(batch, _RATE)
            clock.mark()
            steps += 1
            if steps % 8 == 0:  # keeps the host from running far ahead
                clock.read()
                if time.perf_counter() - started > seconds:
                    break
        wait(device)
        spent = time.perf_counter() - started
        kernels = profiled(lambda: stepper.step(next(taken), _RATE), device) if profile else []
    queries = steps * scale.batch_size
    return {
        "group": size,
        "batch_size": scale.batch_size,
        "precision": "bf16" if bf16 else "float32",
        "steps": steps,
        "seconds": spent,
        "seconds_per_million_queries_per_repetition": spent / queries / size * 1e6,
        "queries_per_second": queries / spent,
        "waiting_share": clock.waiting_share,
        "loss": [float(first.mean()), float(losses.mean())],
        "memory_gib": peak_gib(device),
        **({"kernels": kernels} if profile else {}),
    }


def run_single(scale: Scale, device: torch.device, seconds: float) -> dict[str, Any]:
    """Steps of one repetition by autograd and autocast, fed without a background thread."""
    model = Classifier(
        scale.features, scale.hidden, scale.buckets, loss=LOSS, hidden_dropout=0.15
    ).to(device)
    stepper = Stepper(model, embedding_rate=10.0, bf16=True)
    hash = UniversalHash.draw(scale.products, scale.buckets, 1, 0)
    steps, started = 0, 0.0
    for examples in generated_queries(scale.features, scale.products, scale.batch_size):
        targets = TargetRows(
            hash.buckets(0, examples.classes), examples.class_weights,
            examples.class_splits, examples.weights,
        )  # fmt: skip
        stepper.step(examples.features, targets, _RATE)
        steps += 1
        if steps == _WARM_UP:
            wait(device)
            started = time.perf_counter()
        if steps > _WARM_UP and steps % 8 == 0:
            wait(device)
            if time.perf_counter() - started > seconds:
                break
    spent = time.perf_counter() - started
    queries = (steps - _WARM_UP) * scale.batch_size
    return {
        "group": 1,
        "batch_size": scale.batch_size,
        "precision": "bf16",
        "seconds_per_million_queries_per_repetition": spent / queries * 1e6,
        "memory_gib": peak_gib(device),
    }


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_gib(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def profiled(step: Callable[[], Any], device: torch.device, most: int = 16) -> list[dict[str, Any]]:
    """Where the time of three steps goes, by operation."""
    with torch.profiler.profile() as profile:
        for _ in range(3):
            step()
        wait(device)
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = [(getattr(row, name), row.count, row.key) for row in profile.key_averages()]
    total = sum(row[0] for row in rows) or 1
    return [
        {"operation": key[:90], "share": round(spent / total, 4), "calls": count / 3}
        for spent, count, key in sorted(rows, reverse=True)[:most]
    ]


def shrinking(run: Callable[[int], dict[str, Any]], size: int) -> dict[str, Any]:
    """``run`` with a group of ``size``, or with the largest smaller one that fits."""
    while True:
        try:
            return run(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            note(f"a group of {size} does not fit")
            size = max(1, size * 7 // 8)
        clean()


def clean() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def source_rate(scale: Scale, count: int) -> float:
    """Queries a second that one thread of the host makes ready, alone."""
    source = batches_of(
        generated_queries(scale.features, scale.products, scale.batch_size), scale.features, LOSS
    )
    next(source)  # compiles
    started = time.perf_counter()
    for _ in range(count):
        next(source)
    return count * scale.batch_size / (time.perf_counter() - started)


def largest(scale: Scale, device: torch.device) -> int:
    """How many repetitions fit, by the trainer's own reckoning."""
    if device.type != "cuda":
        return scale.repetitions
    free, _ = torch.cuda.mem_get_info(device)
    first = next(generated_queries(scale.features, scale.products, scale.batch_size))
    used = len(np.unique(first.features.indices))
    sizes = Sizes(scale.features, scale.hidden, scale.buckets, scale.batch_size, used, item=2)
    count = -(-scale.repetitions // min(scale.repetitions, sizes.fitting(free)))
    return -(-scale.repetitions // count)


def measure(options: Any, device: torch.device, limits: gpu.Limits) -> dict[str, Any]:
    scale = SMOKE if options.smoke else PAPER
    small = SMOKE if options.smoke else STORE
    scale = replace(scale, batch_size=options.batch_size or scale.batch_size)
    size = options.group or largest(scale, device)
    note(f"{scale.repetitions} repetitions in groups of {size}, batches of {scale.batch_size}")
    main = shrinking(lambda n: run_batched(scale, n, device, options.seconds, profile=True), size)
    clean()
    brief, size = options.seconds / 8, main["group"]
    variants: dict[str, Any] = {}

    def vary(name: str, run: Callable[[], dict[str, Any]]) -> None:
        note(name)
        try:
            variants[name] = run()
        except torch.OutOfMemoryError:
            variants[name] = {"error": "out of memory"}
        clean()

    vary("one repetition", lambda: run_batched(scale, 1, device, brief))
    vary("one repetition, float32", lambda: run_batched(scale, 1, device, brief, bf16=False))
    vary(
        "one repetition, one-vs-all",
        lambda: run_batched(scale, 1, device, brief, loss="one-vs-all"),
    )
    vary("one repetition, autograd", lambda: run_single(scale, device, brief))
    vary(
        "one repetition, probabilities in one piece",
        lambda: run_batched(scale, 1, device, brief, piece=1 << 40),
    )
    for factor in (2,) if options.smoke else (4, 2):
        part = replace(scale, batch_size=scale.batch_size // factor)
        vary(
            f"batches of {part.batch_size}",
            lambda p=part: run_batched(p, min(4, size), device, brief),
        )
    for count in (1,) if options.smoke else (1, 8, 32):
        vary(f"small, group of {count}", lambda c=count: run_batched(small, c, device, brief))
    vary("small, autograd", lambda: run_single(small, device, brief))
    return {
        "scale": asdict(scale),
        "small_scale": asdict(small),
        "measured": main,
        "host_queries_per_second": source_rate(scale, 4 if options.smoke else 30),
        "arithmetic": floor(scale, limits),
        "projected": project(scale, limits, main, options.epochs),
        "variants": variants,
    }


def main() -> None:
    parser = gpu.parser(__doc__, "train")
    parser.add_argument("--seconds", type=float, help="of the main measurement; default 40")
    parser.add_argument("--epochs", type=int, default=10, help="to project; default: %(default)s")
    parser.add_argument("--group", type=int, help="repetitions at once; default: what fits")
    parser.add_argument("--batch-size", type=int, help="queries a step; default 8192")
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = 0.1 if options.smoke else 40.0
    for name in ("seconds", "epochs", "group", "batch_size"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            gpu.fail(f"--{name.replace('_', '-')}: must be above 0")
    name = gpu.choose_device(options.device, options.smoke)
    if options.smoke:
        torch.set_num_threads(1)  # more would wait for each other longer than they work
    limits = gpu.measure_limits(name, smoke=options.smoke)
    result = measure(options, torch.device(name), limits)
    gpu.write_result(options.out, name, limits, result)
    for key, value in result["projected"].items():
        print(f"{key}: {value:.4g}")


if __name__ == "__main__":
    main()

"""The device that a benchmark ran on, and its limits, measured in the same call.

    python -m benchmarks.gpu.device [--smoke]

Needs PyTorch. A rate here is the best of several runs, each long enough that launching it does not
count: what a kernel of ours is held against, not what a datasheet promises.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.common import describe_machine, describe_run

__all__ = [
    "RESULTS",
    "Limits",
    "best_seconds",
    "choose_device",
    "describe_device",
    "fail",
    "measure_limits",
    "needed",
    "parser",
    "timed",
    "versions",
    "write_result",
]  # fmt: skip

RESULTS = Path(__file__).parent.parent / "results"
PACKAGES = ("torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "numba")


def fail(message: str) -> NoReturn:
    """End with one sentence and exit code 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


def parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Options that the GPU benchmarks share; ``name`` is that of their result."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--smoke", action="store_true", help="a tiny size, on a CPU if need be")
    made.add_argument("--device", help="cuda or cpu; cuda by default, cpu with --smoke and no GPU")
    made.add_argument(
        "--out", type=Path, default=RESULTS / f"gpu-{name}.json", help="default: %(default)s"
    )
    return made


def choose_device(wanted: str | None, smoke: bool) -> str:
    """``cuda`` or ``cpu``; ends the program with a sentence where that cannot be."""
    try:
        import torch  # noqa: PLC0415 - told apart from other mistakes
    except ImportError:
        fail("PyTorch is missing: pip install torch")
    if wanted not in (None, "cpu", "cuda"):
        fail(f"--device: {wanted!r} is neither cuda nor cpu")
    if wanted == "cpu" or (wanted is None and smoke and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        fail(
            f"PyTorch {torch.__version__} (built with {built}) finds no CUDA device; --smoke "
            "runs without one"
        )
    return "cuda"


@contextmanager
def needed(what: str) -> Iterator[None]:
    """End with a sentence where something imported within is not installed.

    Args:
        what: the packages to install, as pip takes them.
    """
    try:
        yield
    except ImportError as error:
        fail(f"{error.name or error} is missing: pip install {what}")


def versions() -> dict[str, str]:
    """Versions of the packages that matter, of those installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_device(device: str) -> dict[str, Any]:
    """Card, driver and versions; for a CPU, versions alone."""
    import torch  # noqa: PLC0415

    described: dict[str, Any] = {"device": device, "versions": versions()}
    if device != "cuda":
        return described
    card = torch.cuda.get_device_properties(0)
    described |= {
        "card": card.name,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "multiprocessors": card.multi_processor_count,
        "l2_mib": round(getattr(card, "L2_cache_size", 0) / 2**20, 1),
        "compute_capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    return described | _nvidia_smi()


def _nvidia_smi() -> dict[str, str]:
    """Driver and power limit, where ``nvidia-smi`` is there to ask."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    done = subprocess.run(
        [command, "--query-gpu=driver_version,power.limit", "--format=csv,noheader", "--id=0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    values = done.stdout.strip().split(", ")
    return {"driver": values[0], "power_limit": values[1]} if len(values) == 2 else {}


@dataclass(frozen=True)
class Limits:
    """What the device reaches on the simplest programs.

    Attributes:
        bf16_flops: of a square matrix product, multiply and add counted apart, in 1/s.
        fp16_flops: the same.
        copy_bytes: read and written by a copy far larger than any cache, in bytes/s.
        read_bytes: read by a sum over as much, in bytes/s.
        cached_bytes: read and written by a copy that stays in the last cache, in bytes/s.
        host_bytes: copied from the device to locked memory of the host, in bytes/s.
    """

    bf16_flops: float
    fp16_flops: float
    copy_bytes: float
    read_bytes: float
    cached_bytes: float
    host_bytes: float


def best_seconds(
    run: Callable[[], Any], device: str, *, repeats: int = 10, inner: int = 1
) -> float:
    """Seconds of one ``run``: the best of ``repeats`` rounds of ``inner`` runs, after one round."""
    import torch  # noqa: PLC0415

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    best = float("inf")
    for round_number in range(repeats + 1):
        wait()
        started = time.perf_counter()
        for _ in range(inner):
            run()
        wait()
        if round_number:
            best = min(best, time.perf_counter() - started)
    return best / inner


def timed(run: Callable[[], Any], *, seconds: float, least: int = 5) -> dict[str, float]:
    """Milliseconds of calls that end when their answer is on the host, after two to warm up.

    Args:
        run: the call.
        seconds: about how long to go on.
        least: calls to time at least.
    """
    for _ in range(2):
        run()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < least or time.perf_counter() - started < seconds:
        at = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - at))
    times.sort()
    return {
        "p50_ms": times[len(times) // 2],
        "p99_ms": times[min(len(times) - 1, round(0.99 * len(times)))],
        "best_ms": times[0],
        "calls": len(times),
    }


def measure_limits(device: str, *, smoke: bool = False) -> Limits:
    """Measure them; about two seconds on a data-centre card, 3 GB of its memory."""
    import torch  # noqa: PLC0415

    size = 64 if smoke else 8192
    large, small = (1 << 16, 1 << 12) if smoke else (1 << 30, 1 << 23)
    repeats = 1 if smoke else 10

    def matrix_rate(kind: torch.dtype) -> float:
        left = torch.randn(size, size, device=device, dtype=torch.float32).to(kind)
        right = torch.randn(size, size, device=device, dtype=torch.float32).to(kind)
        out = torch.empty_like(left)
        seconds = best_seconds(
            lambda: torch.mm(left, right, out=out), device, repeats=repeats, inner=4
        )
        return 2 * size**3 / seconds

    def copy_rate(count: int, inner: int) -> float:
        source = torch.zeros(count, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return (
            2
            * count
            / best_seconds(lambda: target.copy_(source), device, repeats=repeats, inner=inner)
        )

    def read_rate(count: int) -> float:
        source = torch.zeros(count // 4, dtype=torch.float32, device=device)
        return count / best_seconds(source.sum, device, repeats=repeats, inner=2)

    def host_rate(count: int) -> float:
        source = torch.zeros(count, dtype=torch.uint8, device=device)
        target = torch.empty(count, dtype=torch.uint8, pin_memory=device == "cuda")
        return count / best_seconds(
            lambda: target.copy_(source, non_blocking=True), device, repeats=repeats, inner=2
        )

    limits = Limits(
        bf16_flops=matrix_rate(torch.bfloat16),
        fp16_flops=matrix_rate(torch.float16),
        copy_bytes=copy_rate(large, 2),
        read_bytes=read_rate(large),
        cached_bytes=copy_rate(small, 50),
        host_bytes=host_rate(large // 8),
    )
    if device == "cuda":
        torch.cuda.empty_cache()
    return limits


def write_result(path: Path, device: str, limits: Limits, result: dict[str, Any]) -> None:
    """Write ``result`` with where, when and on what it was measured, and print the path."""
    report = {
        "run": describe_run(),
        "machine": describe_machine(),
        "device": describe_device(device),
        "limits": asdict(limits),
        **result,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written to {path}")


def main() -> None:
    options = parser(__doc__, "device").parse_args()
    device = choose_device(options.device, options.smoke)
    write_result(options.out, device, measure_limits(device, smoke=options.smoke), {})


if __name__ == "__main__":
    main()

"""Accuracy and cost against the number of repetitions, drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from mach.errors import ConfigError
from mach.evaluation.evaluate import Evaluation
from mach.files import write_atomically

__all__ = ["check_plotting", "plot_repetitions"]


def check_plotting() -> None:
    """See whether there is what drawing takes, before hours of scoring.

    Raises:
        ConfigError: if matplotlib (the extra ``plot``) is not installed.
    """
    try:
        import matplotlib  # noqa: F401, PLC0415 - an optional extra
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: install the extra 'plot'") from error


def plot_repetitions(results: Sequence[Evaluation], path: Path) -> None:
    """Draw P@1, P@5 and recall against R, and beside them latency and model size, as PNG.

    Raises:
        ConfigError: if matplotlib (the extra ``plot``) is not installed.
    """
    check_plotting()
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    mpl.use("Agg")
    counts = [result.repetitions for result in results]
    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, cost = figure.subplots(1, 2)
    for name in ("P@1", "P@5", "R@20", "R@100"):
        accuracy.plot(counts, [r.metrics[name] for r in results], marker="o", label=name)
    accuracy.set(xlabel="repetitions", ylabel="fraction", title="accuracy", ylim=(0, None))
    cost.plot(counts, [r.latency_p50_ms for r in results], marker="o", color="tab:red")
    cost.set(xlabel="repetitions", ylabel="p50 latency, ms (one thread)", title="cost")
    cost.set_ylim(0, None)
    size = cost.twinx()
    size.plot(counts, [r.model_bytes / 1e6 for r in results], marker="s", color="tab:gray")
    size.set_ylabel("model, MB (grey)")
    size.set_ylim(0, None)
    accuracy.legend()
    for axes in (accuracy, cost):
        axes.set_xticks(counts)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())

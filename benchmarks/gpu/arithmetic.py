"""What a step must cost at least on a card, and what a measured rate comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.device import Limits
    from benchmarks.gpu.train import Scale

__all__ = ["floor", "project"]

#: Bytes that Adam moves for a parameter: reads it, its gradient and two moments, writes three.
_ADAM_BYTES = 28
#: Bytes of a bf16 logit: written, read by the softmax, written back, read by two products.
_LOGIT_BYTES = 10


def flops_per_query(scale: Scale) -> float:
    """Floating-point operations of a query and repetition: three products of H × B."""
    return 6.0 * scale.hidden * scale.buckets


def floor(scale: Scale, limits: Limits) -> dict[str, float]:
    """Least seconds per million queries of a repetition, by what takes them."""
    per_step = 1e6 / scale.batch_size
    dense = scale.hidden * scale.buckets
    return {
        "flops_per_query": flops_per_query(scale),
        "matrix_products_s": 1e6 * flops_per_query(scale) / limits.bf16_flops,
        "adam_s": per_step * _ADAM_BYTES * dense / limits.copy_bytes,
        "logits_s": 1e6 * _LOGIT_BYTES * scale.buckets / limits.copy_bytes,
    }


def project(
    scale: Scale, limits: Limits, measured: dict[str, Any], epochs: int
) -> dict[str, float]:
    """One epoch and ``epochs`` of all repetitions at the measured rate, in groups as measured."""
    seconds = measured["seconds_per_million_queries_per_repetition"]
    epoch = seconds * scale.queries / 1e6 * scale.repetitions
    flops = 1e6 * flops_per_query(scale) / seconds
    return {
        "seconds_per_million_queries_per_repetition": seconds,
        "hours_per_epoch_of_all_repetitions": epoch / 3600,
        "epochs": epochs,
        "hours_of_all_epochs": epochs * epoch / 3600,
        "hours_of_all_epochs_at_the_matrix_rate": epochs
        * flops_per_query(scale)
        * scale.queries
        * scale.repetitions
        / limits.bf16_flops
        / 3600,
        "flops": flops,
        "share_of_matrix_rate": flops / limits.bf16_flops,
        "waiting_share": measured["waiting_share"],
    }

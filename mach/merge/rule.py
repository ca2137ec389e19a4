"""How one product's score is merged from its R bucket probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mach.errors import InvalidInput

__all__ = ["LEAST_EXPONENT", "MergeRule"]

LEAST_EXPONENT = 0.001


@dataclass(frozen=True)
class MergeRule:
    """A power mean of a product's bucket probabilities.

    With p_r the probability that repetition r gives the product's bucket, the merged score is
    the power mean ``M_t = (1/R * sum_r p_r**t) ** (1/t)`` (Hardy, Littlewood and Pólya,
    "Inequalities", 1934, §2.2), whose limit for t → 0 is the geometric mean. ``t = 1`` is the
    mean of probabilities that MACH (Medini et al., NeurIPS 2019, §2) orders products by; ``t = 0``
    orders by the sum of log-probabilities. Both ends and all between are a sum over repetitions
    of one function of one probability, which is all that :class:`mach.merge.TopK` needs.

    Attributes:
        exponent: t, 0 or from 0.001 to 1: of smaller ones a float32 holds too little of p**t.
    """

    exponent: float

    def __post_init__(self) -> None:
        t = self.exponent
        if not isinstance(t, int | float) or not (t == 0 or LEAST_EXPONENT <= t <= 1):
            message = f"must be 0, or from {LEAST_EXPONENT} to 1, got {t!r}"
            raise InvalidInput("merge.exponent", message)

    def transform(
        self, log_probabilities: NDArray[np.float32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Log-probabilities to additive scores f(p): ``log p`` for t = 0, else ``p**t``.

        Args:
            log_probabilities: natural logarithms, float32, any shape.
            out: where to write, float32, the same shape; may be ``log_probabilities`` itself.

        Returns:
            ``out``, or without one a new array (for t = 0 the input itself).
        """
        if self.exponent == 0:
            if out is None or out is log_probabilities:
                return log_probabilities
            np.copyto(out, log_probabilities)
            return out
        out = np.multiply(log_probabilities, np.float32(self.exponent), out=out)
        np.exp(out, out=out)
        return out

    def final(self, sums: ArrayLike, num_repetitions: int) -> NDArray[np.float64]:
        """Sums of additive scores to reported scores: ``log M_t``, in nats, at most 0.

        For t = 0 that is ``sum / R``, the mean log-probability; else ``log(sum / R) / t``.
        The order is that of the sums, and since a mean does not grow with its number of terms,
        scores over different subsets of repetitions can be compared. ``exp`` of it is a
        probability.

        Args:
            sums: of :meth:`transform`'s values over ``num_repetitions`` repetitions, any shape.
            num_repetitions: how many were summed, at least 1.
        """
        if num_repetitions < 1:
            raise InvalidInput("num_repetitions", f"must be at least 1, got {num_repetitions}")
        means = np.asarray(sums, np.float64) / num_repetitions
        if self.exponent == 0:
            return means
        with np.errstate(divide="ignore"):  # a product no repetition gives any mass: -inf
            logs: NDArray[np.float64] = np.log(means) / self.exponent
        return logs

    def to_manifest(self) -> dict[str, Any]:
        """A JSON-ready description, read back by :meth:`from_manifest`."""
        return {"rule": "power-mean", "exponent": float(self.exponent)}

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> MergeRule:
        """Read what :meth:`to_manifest` wrote.

        Raises:
            InvalidInput: if the rule is unknown or its exponent out of range.
        """
        if entry.get("rule") != "power-mean":
            raise InvalidInput("merge.rule", f"unknown merge rule {entry.get('rule')!r}")
        exponent = entry.get("exponent")
        if isinstance(exponent, bool) or not isinstance(exponent, int | float):
            raise InvalidInput("merge.exponent", f"must be a number, got {exponent!r}")
        return cls(float(exponent))

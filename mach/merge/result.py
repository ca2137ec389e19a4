"""What a search returns, and how much it may do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput

__all__ = ["TopKResult", "WorkBudget"]


@dataclass(frozen=True)
class WorkBudget:
    """How much a search may do before it returns what it has.

    Attributes:
        max_candidates: products to look at, at least 1; None for no limit.
        seconds: time to take, above 0; None for no limit. Looked at every few milliseconds.
    """

    max_candidates: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.max_candidates is not None and self.max_candidates < 1:
            raise InvalidInput("budget.max_candidates", "must be at least 1")
        if self.seconds is not None and not self.seconds > 0:
            raise InvalidInput("budget.seconds", "must be above 0")


@dataclass(frozen=True)
class TopKResult:
    """The products found, best first.

    Attributes:
        classes: int64, shape (k',); k' = min(k, products allowed), or fewer within a budget.
        scores: sums of additive scores over the repetitions, float64, shape (k',).
        proven: whether these are the k best, in the order of scoring every product.
        bound: no product that was not looked at has a higher sum than this.
        candidates: how many products were looked at, at most.
    """

    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    proven: bool
    bound: float
    candidates: int

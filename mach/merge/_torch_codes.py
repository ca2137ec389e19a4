"""Scores of a batch in 8 bits, rounded up, side by side: what a pass over all products reads.

A product's score is a sum of R numbers, one from each row of a query's scores. Row r of query q is
written as codes c with ``score ≤ floor[q, r] + step[q] * c``, the step being one for all rows of a
query, so that a sum of codes bounds a product's score from above::

    score ≤ sum_r floor[q, r] + step[q] * sum_r c

A product whose sum of codes is below :meth:`Codes.least` cannot reach a score, and few others are
left to be summed exactly. The codes that a batch has for one bucket lie side by side, four to a
32-bit word: a product's bucket is looked up once for all queries, and one instruction adds two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["MAX_ROWS", "Codes", "encode"]

#: Rows whose codes add up in 16 bits.
MAX_ROWS = 65_535 // 255
_STEPS = 254  # of 255: rounding up may take one more
#: Rounding of ``(score - floor) / step`` in float32, at most 254 * 3 * 2**-24, and then some.
_SLACK = 1e-4


@dataclass(frozen=True, eq=False)
class Codes:
    """A batch of q queries with r rows of B scores.

    Attributes:
        words: int32, shape (r, B, w): byte i of word j is the code of query 4 j + i.
        base: float64, shape (q,): sum of the rows' floors.
        step: float64, shape (q,).
        magnitude: float64, shape (q,): of the numbers that were summed, for bounds of rounding.
        usable: bool, shape (q,): False where a row has no finite score, or the range of scores
            leaves 8 bits no use.
    """

    words: torch.Tensor
    base: torch.Tensor
    step: torch.Tensor
    magnitude: torch.Tensor
    usable: torch.Tensor

    @property
    def num_queries(self) -> int:
        """q."""
        return len(self.base)

    def least(self, reached: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of codes below which no product scores ``reached``, float64, shape (q,).

        Returns:
            int32 of shape (4 w,), queries that only fill up words included (none passes); and
            whether each query's can be relied on, bool, shape (q,).
        """
        rows = self.words.shape[0]
        # Exact scores are float64 sums of as many terms; 2**-50 is some bits more than rounds.
        margin = rows * 2.0**-50 * (self.magnitude + reached.abs()) / self.step
        least = torch.ceil((reached - self.base) / self.step - margin - 1e-3)
        usable = self.usable & torch.isfinite(least) & (margin < 1)
        filled = torch.full((4 * self.words.shape[2],), 2**31 - 1, dtype=torch.int32)
        filled = filled.to(self.words.device)
        filled[: self.num_queries] = (
            torch.where(usable, least, 2.0**31 - 1).clamp(0, 2**31 - 1).to(torch.int64)
        )
        return filled, usable


def encode(scores: torch.Tensor, num_words: int) -> Codes:
    """Write a batch.

    Args:
        scores: float32, shape (q, r, B), no NaN and no +inf; r at most :data:`MAX_ROWS`.
        num_words: w, at least q / 4.
    """
    queries, rows, buckets = scores.shape
    floor = torch.where(torch.isfinite(scores), scores, torch.inf).amin(dim=2)
    top = scores.amax(dim=2)
    step = ((top - floor).to(torch.float64) / _STEPS).amax(dim=1)
    usable = torch.isfinite(floor).all(dim=1) & torch.isfinite(step) & (step > 1e-30)
    step = torch.where(usable, step, 1.0)
    floor = torch.where(torch.isfinite(floor), floor, 0.0)
    steps = (scores - floor[:, :, None]) * (1 / step).to(torch.float32)[:, None, None]
    codes = torch.zeros((rows, buckets, 4 * num_words), dtype=torch.uint8, device=scores.device)
    # -inf becomes 0, whose bound is the row's floor.
    codes[:, :, :queries] = (
        steps.add_(_SLACK).ceil_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
    )
    wide = floor.to(torch.float64)
    magnitude = wide.abs().sum(dim=1) + top.to(torch.float64).nan_to_num(neginf=0).abs().sum(dim=1)
    return Codes(codes.view(torch.int32), wide.sum(dim=1), step, magnitude, usable)

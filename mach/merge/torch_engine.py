"""The same search by scoring every product on a GPU; needs torch, which serving does not.

Scoring 50 million products over 32 repetitions reads 3.2 GB of buckets, which a GPU with a few
terabytes a second of memory bandwidth does in about a millisecond, whatever the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mach.errors import InvalidInput
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult
from mach.merge.table import BucketTable

__all__ = ["TorchTopK"]


class TorchTopK:
    """Exact top-k over one :class:`BucketTable` on a torch device; like :class:`mach.merge.TopK`.

    Sums are float32 first, a chunk of products at a time; what they cannot rule out is summed
    again in float64 in increasing order of repetition, so that scores and order, ties included,
    are those of :class:`mach.merge.TopK`. There is no budget: every search scores everything.

    Args:
        table: the products. Their buckets are copied to the device: 2 bytes a product and
            repetition while B ≤ 65,536, else 4.
        device: such as ``cuda`` or ``cpu``.
        chunk: products scored at a time; 12 bytes each of working memory.
    """

    def __init__(
        self, table: BucketTable, device: str | torch.device = "cuda", *, chunk: int = 1 << 22
    ) -> None:
        if chunk < 1:
            raise InvalidInput("chunk", f"must be at least 1, got {chunk}")
        self.table = table
        self.device = torch.device(device)
        self.chunk = chunk
        columns = table.columns() if table.assignment is None else table.assignment.T
        # torch computes with few unsigned types: the bits travel as signed ones.
        signed = np.int16 if table.dtype == np.uint16 else np.int32
        self._columns = torch.empty(
            columns.shape,
            dtype=torch.int16 if table.dtype == np.uint16 else torch.int32,
            device=self.device,
        )
        for repetition, column in enumerate(columns):
            bits = np.ascontiguousarray(column).view(signed)
            # A copy: torch refuses to share memory that is mapped read-only.
            self._columns[repetition] = torch.from_numpy(bits.copy()).to(self.device)

    def search(
        self,
        scores: NDArray[np.float32],
        k: int,
        *,
        repetitions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        allowed: ProductSet | None = None,
    ) -> TopKResult:
        """The k best products of one query; as :meth:`mach.merge.TopK.search`.

        Raises:
            InvalidInput: if an argument does not fit the table, or a score is NaN or ``+inf``.
        """
        rows = self.table.checked_repetitions(repetitions)
        self.table.check_query(np.shape(scores), len(rows), k, allowed)
        scores = np.ascontiguousarray(scores, np.float32)
        if not (scores < np.inf).all():
            raise InvalidInput("scores", "a score is NaN or +inf")
        total = self.table.num_classes
        k = min(k, total if allowed is None else allowed.size)
        mask = self._mask(allowed)
        tops = scores.max(axis=1).astype(np.float64)
        on_device = torch.from_numpy(scores).to(self.device)
        best_scores = torch.empty(0, dtype=torch.float64, device=self.device)
        best_classes = torch.empty(0, dtype=torch.int64, device=self.device)
        for start in range(0, total if k else 0, self.chunk):
            end = min(total, start + self.chunk)
            reached = float(best_scores[-1]) if len(best_scores) == k else -np.inf
            found = self._candidates(on_device, rows, start, end, k, mask, reached, tops)
            sums = self._exact(on_device, rows, found)
            best_scores, best_classes = _best(
                torch.cat([best_scores, sums]), torch.cat([best_classes, found]), k
            )
        return TopKResult(
            best_classes.cpu().numpy(), best_scores.cpu().numpy(), True, -np.inf, total
        )

    def search_batch(
        self,
        scores: NDArray[np.float32],
        k: int,
        *,
        repetitions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        allowed: ProductSet | None = None,
    ) -> list[TopKResult]:
        """:meth:`search` for several queries; ``scores`` has shape (n, r, B)."""
        return [self.search(one, k, repetitions=repetitions, allowed=allowed) for one in scores]

    def _mask(self, allowed: ProductSet | None) -> torch.Tensor | None:
        if allowed is None:
            return None
        mask = torch.from_numpy(allowed.as_mask()).to(self.device)
        return mask

    def _buckets(self, repetition: int, start: int, end: int) -> torch.Tensor:
        part = self._columns[repetition, start:end].to(torch.int64)
        return part & 0xFFFF if self._columns.dtype == torch.int16 else part & 0xFFFFFFFF

    def _candidates(
        self,
        scores: torch.Tensor,
        rows: NDArray[np.int64],
        start: int,
        end: int,
        k: int,
        mask: torch.Tensor | None,
        reached: float,
        tops: NDArray[np.float64],
    ) -> torch.Tensor:
        """Classes from ``start`` to ``end`` that may be among the k best, increasing."""
        sums = torch.zeros(end - start, dtype=torch.float32, device=self.device)
        for row, repetition in enumerate(rows.tolist()):
            sums += scores[row][self._buckets(repetition, start, end)]
        possible = torch.ones_like(sums, dtype=torch.bool) if mask is None else mask[start:end]
        here = sums.masked_fill(~possible, -np.inf).nan_to_num(nan=-np.inf)
        if len(here) >= k:
            kth = float(torch.topk(here, k).values[-1])
            reached = max(reached, _least(len(rows), kth, tops))
        # Sums that overflow may be NaN: kept, to be summed in float64.
        possible = possible & ~(sums < _least(len(rows), reached, tops))
        found: torch.Tensor = possible.nonzero().flatten() + start
        return found

    def _exact(
        self, scores: torch.Tensor, rows: NDArray[np.int64], classes: torch.Tensor
    ) -> torch.Tensor:
        sums = torch.zeros(len(classes), dtype=torch.float64, device=self.device)
        wide = 0xFFFF if self._columns.dtype == torch.int16 else 0xFFFFFFFF
        for row, repetition in enumerate(rows.tolist()):
            buckets = self._columns[repetition][classes].to(torch.int64) & wide
            sums += scores[row][buckets].to(torch.float64)
        return sums


def _best(scores: torch.Tensor, classes: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best, by score falling; the classes come in increasing order where scores tie."""
    order = torch.sort(scores, descending=True, stable=True).indices[:k]
    return scores[order], classes[order]


def _least(num_rows: int, reached: float, tops: NDArray[np.float64]) -> float:
    """A float32 sum below which no product's exact score is ``reached``; as in ``_scan``."""
    magnitude, top_sum = float(np.abs(tops).sum()), float(tops.sum())
    error = num_rows * 2.0**-22 * (magnitude + max(0.0, top_sum - reached))
    return reached - error if error < np.inf else -np.inf

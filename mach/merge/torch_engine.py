"""The same search by scoring every product on a GPU; needs torch, which serving does not.

A batch is searched in one pass. Its scores are written in 8 bits, rounded up (``_torch_codes``), so
that a product's sum of codes bounds its score; every product's buckets are read once for up to
``group`` queries, 2 bytes a product and repetition, 3.2 GB for 50 million products and R = 32;
and what a threshold cannot rule out, some thousands of products a query, is summed exactly. The
threshold is the exact score of the k-th best product of a sample, every 32nd: it is a bound
whatever the sample, and the better the sample the fewer are left. Every product's buckets are
written out once, whatever the table's blocks: to read 2 bytes takes bandwidth that a pass leaves
idle, to compute them integer units that are busy adding codes (``docs/gpu.md``).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mach.errors import ConfigError, InvalidInput
from mach.merge import _torch_scan
from mach.merge._torch_codes import MAX_ROWS, encode
from mach.merge._torch_scan import Products
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult
from mach.merge.table import BucketTable

__all__ = ["TorchTopK"]

_SAMPLED = 32  # one of so many products
_LEAST_ROOM = 1 << 16  # products written down for a query, at least
_LAST = 2**62  # after every product


class TorchTopK:
    """Exact top-k over one :class:`BucketTable` on a torch device; like :class:`mach.merge.TopK`.

    Bounds come first, in 8 bits or float32; what they cannot rule out is summed in float64 in
    increasing order of repetition, so that scores and order, ties included, are those of
    :class:`mach.merge.TopK`. There is no budget: every search scores everything.

    Args:
        table: the products. The device holds every one's buckets: 2 bytes a product and
            repetition while B ≤ 65,536, else 4.
        device: such as ``cuda`` or ``cpu``.
        chunk: products scored at a time where a query is searched alone; 12 bytes each of
            working memory.
        group: queries that share a pass, at most; their codes should fit the device's
            second-level cache, r × B bytes a query.
        kernel: ``triton``, ``torch``, or what there is.
        batched_from: products from which on a batch shares passes.

    Raises:
        InvalidInput: if a number is below 1.
        ConfigError: if Triton is asked for and is not installed.
    """

    def __init__(
        self,
        table: BucketTable,
        device: str | torch.device = "cuda",
        *,
        chunk: int = 1 << 22,
        group: int = 32,
        kernel: Literal["auto", "torch", "triton"] = "auto",
        batched_from: int = 1 << 16,
    ) -> None:
        for name, number in (("chunk", chunk), ("group", group), ("batched_from", batched_from)):
            if number < 1:
                raise InvalidInput(name, f"must be at least 1, got {number}")
        self.table = table
        self.device = torch.device(device)
        self.chunk = chunk
        self.group = group
        self.batched_from = batched_from
        has_triton = find_spec("triton") is not None
        if kernel == "triton" and not has_triton:
            raise ConfigError("kernel: triton was asked for, but the package is not installed")
        if kernel == "auto":
            kernel = "triton" if has_triton and self.device.type == "cuda" else "torch"
        self.kernel = kernel
        self._scan: Any = _torch_scan
        if kernel == "triton":
            from mach.merge import _triton_scan  # noqa: PLC0415 - installed or not

            self._scan = _triton_scan
        self._columns = self._copy_columns()

    def _copy_columns(self) -> torch.Tensor:
        # torch computes with few unsigned types: the bits travel as signed ones.
        table = self.table
        narrow = table.dtype == np.uint16
        columns = torch.empty(
            (table.num_repetitions, table.num_classes),
            dtype=torch.int16 if narrow else torch.int32,
            device=self.device,
        )
        for repetition in range(table.num_repetitions):
            # Widened, since a start and a lane may add up to more than 16 bits hold; and so a copy,
            # as torch cannot share memory that is mapped read-only.
            starts = torch.from_numpy(table.starts[repetition].astype(np.int64)).to(self.device)
            for start in range(0, table.num_classes, self.chunk):
                end = min(table.num_classes, start + self.chunk)
                classes = torch.arange(start, end, device=self.device)
                buckets = starts[classes // table.width] + classes % table.width
                columns[repetition, start:end] = buckets % table.num_buckets
        return columns

    def search(
        self,
        scores: NDArray[np.float32] | torch.Tensor,
        k: int,
        *,
        repetitions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        allowed: ProductSet | None = None,
    ) -> TopKResult:
        """The k best products of one query; as :meth:`mach.merge.TopK.search`.

        Args:
            scores: float32, shape (r, B), as an array or a tensor on any device.
            k: see there.
            repetitions: see there.
            allowed: see there.

        Raises:
            InvalidInput: if an argument does not fit the table, or a score is NaN or ``+inf``.
        """
        return self.search_batch(scores[None], k, repetitions=repetitions, allowed=allowed)[0]

    def search_batch(
        self,
        scores: NDArray[np.float32] | torch.Tensor,
        k: int,
        *,
        repetitions: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        allowed: ProductSet | None = None,
    ) -> list[TopKResult]:
        """:meth:`search` for several queries; ``scores`` has shape (n, r, B), n may be 0."""
        rows = self.table.checked_repetitions(repetitions)
        self.table.check_query(tuple(scores.shape[1:]), len(rows), k, allowed)
        on_device = torch.as_tensor(scores, dtype=torch.float32).to(self.device)
        if not bool((on_device < torch.inf).all()):
            raise InvalidInput("scores", "a score is NaN or +inf")
        total = self.table.num_classes if allowed is None else allowed.size
        k = min(k, total)
        mask = self._mask(allowed)
        if total < max(self.batched_from, 2 * k) or len(rows) > MAX_ROWS or not k:
            return [self._search_one(one, k, rows, mask) for one in on_device]
        ids = None if mask is None else mask.nonzero().flatten().to(torch.int32)
        results: list[TopKResult] = []
        for start in range(0, len(on_device), self.group):
            some = on_device[start : start + self.group]
            found = self._search_group(some, k, rows, ids, total)
            for query, result in enumerate(found):
                results.append(result or self._search_one(some[query], k, rows, mask))
        return results

    def _search_group(
        self,
        scores: torch.Tensor,
        k: int,
        rows: NDArray[np.int64],
        ids: torch.Tensor | None,
        total: int,
    ) -> list[TopKResult | None]:
        """Queries in one pass; None for those that it cannot settle."""
        # Powers of two, each a kernel of its own.
        codes = encode(scores, max(1, 1 << ((len(scores) + 3) // 4 - 1).bit_length()))
        on_device = torch.from_numpy(rows.astype(np.int32)).to(self.device)
        every = Products(self._columns, on_device, ids, 1, total)
        size = min(total, max(total // _SAMPLED, 4 * k))
        sample = every._replace(stride=total // size, size=size)
        sums = self._scan.code_sums(sample, codes.words)[: len(scores)]
        places = torch.topk(sums, k, dim=1).indices * sample.stride
        best = places if ids is None else ids[places].to(torch.int64)
        # Any k products' scores bound the k-th best from below.
        least, usable = codes.least(self._exact(scores, rows, best).amin(dim=1))
        capacity = max(_LEAST_ROOM, 1 << (16 * _SAMPLED * k).bit_length())
        counts, found = self._scan.code_hits(every, codes.words, least, min(total, capacity))
        settled = (usable & (counts[: len(scores)] <= found.shape[1])).tolist()
        most = min(int(counts.max()), found.shape[1])
        classes = found[: len(scores), :most].to(torch.int64)
        there = torch.arange(most, device=self.device) < counts[: len(scores), None]
        exact = self._exact(scores, rows, torch.where(there, classes, 0))
        # By class first, so that a stable sort by score leaves ties in that order.
        classes, order = torch.where(there, classes, _LAST).sort(dim=1)
        exact = torch.where(classes == _LAST, -torch.inf, exact.gather(1, order))
        exact, order = exact.sort(dim=1, descending=True, stable=True)
        best_scores = exact[:, :k].cpu().numpy()
        best_classes = classes.gather(1, order[:, :k]).cpu().numpy()
        return [
            TopKResult(best_classes[query], best_scores[query], True, -np.inf, total)
            if settled[query]
            else None
            for query in range(len(scores))
        ]

    def _search_one(
        self,
        scores: torch.Tensor,
        k: int,
        rows: NDArray[np.int64],
        mask: torch.Tensor | None,
    ) -> TopKResult:
        """One query by float32 sums, a chunk of products at a time."""
        total = self.table.num_classes
        tops = scores.amax(dim=1).cpu().numpy().astype(np.float64)
        best_scores = torch.empty(0, dtype=torch.float64, device=self.device)
        best_classes = torch.empty(0, dtype=torch.int64, device=self.device)
        for start in range(0, total if k else 0, self.chunk):
            end = min(total, start + self.chunk)
            reached = float(best_scores[-1]) if len(best_scores) == k else -np.inf
            found = self._candidates(scores, rows, start, end, k, mask, reached, tops)
            sums = self._exact(scores[None], rows, found[None])[0]
            best_scores, best_classes = _best(
                torch.cat([best_scores, sums]), torch.cat([best_classes, found]), k
            )
        return TopKResult(
            best_classes.cpu().numpy(), best_scores.cpu().numpy(), True, -np.inf, total
        )

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
        """Scores of (q, m) products of q queries, float64; ``scores`` has shape (q, r, B)."""
        sums = torch.zeros(classes.shape, dtype=torch.float64, device=self.device)
        wide = 0xFFFF if self._columns.dtype == torch.int16 else 0xFFFFFFFF
        for row, repetition in enumerate(rows.tolist()):
            buckets = self._columns[repetition][classes].to(torch.int64) & wide
            sums += scores[:, row].gather(1, buckets).to(torch.float64)
        return sums


def _best(scores: torch.Tensor, classes: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k best, by score falling; the classes come in increasing order where scores tie."""
    order = torch.sort(scores, descending=True, stable=True).indices[:k]
    return scores[order], classes[order]


def _least(num_rows: int, reached: float, tops: NDArray[np.float64]) -> float:
    """A float32 sum below which no product's exact score is ``reached``.

    A product that scores S has sum(M_r - s_r) = sum(M_r) - S over rows with best scores M_r, so
    its scores' magnitudes sum to at most sum(abs(M_r)) + sum(M_r) - S, and rounding moves its
    float32 sum by at most n * 2**-24 of that.
    """
    magnitude, top_sum = float(np.abs(tops).sum()), float(tops.sum())
    error = num_rows * 2.0**-22 * (magnitude + max(0.0, top_sum - reached))
    return reached - error if error < np.inf else -np.inf

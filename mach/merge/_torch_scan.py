"""Sums of codes over all products in plain torch: what ``_triton_scan`` does in one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

__all__ = ["Products", "code_hits", "code_sums"]

_CHUNK = 1 << 18
_EVEN = 0x00FF00FF  # of a word, the codes of queries 0 and 2 each in 16 bits


class Products(NamedTuple):
    """The products to look at, and where they are."""

    columns: torch.Tensor  # int16 or int32 bits of unsigned buckets, shape (R, K)
    rows: torch.Tensor  # int32, shape (r,): the repetitions that the scores' rows are
    ids: torch.Tensor | None  # int32: the products; all K for None
    stride: int  # every stride-th of them
    size: int  # how many


def _chunks(products: Products) -> Iterator[tuple[int, torch.Tensor]]:
    """Positions and the products there, int64."""
    for start in range(0, products.size, _CHUNK):
        end = min(products.size, start + _CHUNK)
        positions = torch.arange(start, end, device=products.columns.device) * products.stride
        yield start, positions if products.ids is None else products.ids[positions].to(torch.int64)


def _sums(products: Products, words: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Sums of codes, int32, shape (products, queries)."""
    wide = 0xFFFF if products.columns.dtype == torch.int16 else 0xFFFFFFFF
    even = torch.zeros((len(classes), words.shape[2]), dtype=torch.int32, device=words.device)
    odd = torch.zeros_like(even)
    for row, repetition in enumerate(products.rows.tolist()):
        word = words[row][products.columns[repetition][classes].to(torch.int64) & wide]
        even += word & _EVEN
        odd += (word >> 8) & _EVEN
    lanes = (even & 0xFFFF, odd & 0xFFFF, (even >> 16) & 0xFFFF, (odd >> 16) & 0xFFFF)
    return torch.stack(lanes, dim=2).flatten(1)


def code_sums(products: Products, words: torch.Tensor) -> torch.Tensor:
    """Sums of codes: int32, shape (4 w, size)."""
    parts = [_sums(products, words, classes).T for _, classes in _chunks(products)]
    return torch.cat(parts, dim=1)


def code_hits(
    products: Products, words: torch.Tensor, least: torch.Tensor, capacity: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The products whose sums reach ``least``.

    Args:
        products: where to look.
        words: of :class:`mach.merge._torch_codes.Codes`.
        least: int32, shape (4 w,).
        capacity: how many are written down for each query.

    Returns:
        How many there are, int32, shape (4 w,), and those written down, int32, shape
        (4 w, capacity), in no order.
    """
    counts = torch.zeros(len(least), dtype=torch.int32, device=words.device)
    found = torch.zeros((len(least), capacity), dtype=torch.int32, device=words.device)
    for _, classes in _chunks(products):
        hits = _sums(products, words, classes) >= least
        for query in hits.any(dim=0).nonzero().flatten().tolist():
            some = classes[hits[:, query]].to(torch.int32)
            at = int(counts[query])
            room = some[: max(0, capacity - at)]
            found[query, at : at + len(room)] = room
            counts[query] += len(some)
    return counts, found

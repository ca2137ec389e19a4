"""Sums of codes over all products in one kernel; the same as ``_torch_scan``.

One program takes a block of products. It reads their buckets, 2 bytes a product and repetition,
once for the whole batch; each bucket's words, which lie side by side, come from the second-level
cache, where the codes of a batch of 32 fit at R = 32 and B = 20,000 (20 MB). Sums stay in
registers. Only products that reach a query's threshold are written, by an atomic counter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mach.merge._torch_scan import Products

__all__ = ["code_hits", "code_sums"]

_BLOCK = 64
_UNROLL = 4  # repetitions whose loads are under way at once
_WARPS = 1  # a program is one warp, so that none waits for another


@triton.jit  # type: ignore[untyped-decorator]
def _scan(  # type: ignore[no-untyped-def]
    columns,
    rows,
    words,
    ids,
    least,
    counts,
    out,
    num_classes,
    num_rows,
    num_buckets,
    stride,
    count,
    width,
    BLOCK: tl.constexpr,
    WORDS: tl.constexpr,
    UNROLL: tl.constexpr,
    LISTED: tl.constexpr,
    NARROW: tl.constexpr,
    HITS: tl.constexpr,
):
    """``num_rows`` is a multiple of UNROLL; a row of ``out`` has room for ``width`` products."""
    position = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = position < count
    product = position.to(tl.int64) * stride
    if LISTED:
        product = tl.load(ids + product, mask=inside, other=0).to(tl.int64)
    word = tl.arange(0, WORDS)
    even = tl.zeros([BLOCK, WORDS], tl.int32)
    odd = tl.zeros([BLOCK, WORDS], tl.int32)
    for first in range(0, num_rows, UNROLL):
        for ahead in tl.static_range(UNROLL):
            row = first + ahead
            repetition = tl.load(rows + row).to(tl.int64)
            bucket = tl.load(
                columns + repetition * num_classes + product,
                mask=inside,
                other=0,
                eviction_policy="evict_first",
            ).to(tl.int64)
            bucket = bucket & (0xFFFF if NARROW else 0xFFFFFFFF)  # the bits are unsigned
            place = (row * num_buckets + bucket) * WORDS
            codes = tl.load(
                words + place[:, None] + word[None, :],
                mask=inside[:, None],
                other=0,
                eviction_policy="evict_last",
            )
            even += codes & 0x00FF00FF
            odd += (codes >> 8) & 0x00FF00FF
    for lane in tl.static_range(4):
        pair = even if lane % 2 == 0 else odd
        sums = (pair >> (16 * (lane // 2))) & 0xFFFF
        query = tl.broadcast_to((4 * word + lane)[None, :], [BLOCK, WORDS])
        if HITS:
            threshold = tl.load(least + 4 * word + lane)
            hit = (sums >= threshold[None, :]) & inside[:, None]
            at = tl.atomic_add(counts + query, 1, mask=hit, sem="relaxed")
            tl.store(
                out + query.to(tl.int64) * width + at,
                tl.broadcast_to(product[:, None], [BLOCK, WORDS]).to(tl.int32),
                mask=hit & (at < width),
            )
        else:
            target = out + query.to(tl.int64) * width + position[:, None]
            tl.store(target, sums, mask=tl.broadcast_to(inside[:, None], [BLOCK, WORDS]))


def _launch(
    products: Products,
    words: torch.Tensor,
    least: torch.Tensor,
    counts: torch.Tensor,
    out: torch.Tensor,
    hits: bool,
) -> None:
    if not products.size:
        return
    rows = products.rows
    missing = -len(rows) % _UNROLL
    if missing:  # with rows of nothing
        rows = torch.nn.functional.pad(rows, (0, missing))
        words = torch.nn.functional.pad(words, (0, 0, 0, 0, 0, missing))
    _scan[(triton.cdiv(products.size, _BLOCK),)](
        products.columns,
        rows,
        words,
        rows if products.ids is None else products.ids,
        least,
        counts,
        out,
        products.columns.shape[1],
        len(rows),
        words.shape[1],
        products.stride,
        products.size,
        out.shape[1],
        BLOCK=_BLOCK,
        WORDS=words.shape[2],
        UNROLL=_UNROLL,
        LISTED=products.ids is not None,
        NARROW=products.columns.dtype == torch.int16,
        HITS=hits,
        num_warps=_WARPS,
    )


def code_sums(products: Products, words: torch.Tensor) -> torch.Tensor:
    """As :func:`mach.merge._torch_scan.code_sums`."""
    queries = 4 * words.shape[2]
    out = torch.empty((queries, products.size), dtype=torch.int32, device=words.device)
    unused = torch.zeros(queries, dtype=torch.int32, device=words.device)
    _launch(products, words, unused, unused, out, False)
    return out


def code_hits(
    products: Products, words: torch.Tensor, least: torch.Tensor, capacity: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`mach.merge._torch_scan.code_hits`."""
    counts = torch.zeros(len(least), dtype=torch.int32, device=words.device)
    found = torch.zeros((len(least), capacity), dtype=torch.int32, device=words.device)
    _launch(products, words, least, counts, found, True)
    return counts, found

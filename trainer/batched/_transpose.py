"""Compiled: a batch's entries put in the order of their features."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["by_feature"]

Longs = NDArray[np.int64]
Floats = NDArray[np.float32]


@njit(cache=True, nogil=True)
def by_feature(
    indices: NDArray[np.int32],
    values: Floats,
    splits: NDArray[np.int32],
    most: int,
    place: Longs,
) -> tuple[Longs, Longs, Floats, Longs, Longs]:
    """Gather the entries of each feature in use, in pieces of at most ``most``.

    Piece k < U is the beginning of feature ``used[k]``; pieces from U on are what is left of
    long ones, and ``owners`` says whose.

    Args:
        indices, values, splits: the batch, CSR with nnz entries.
        most: entries a piece.
        place: shape (F,), all -1 before and after.

    Returns:
        ``used``, shape (U,), features by first appearance; ``rows``, shape (nnz,), the row of
        each entry, piece by piece; ``row_values``, shape (nnz,), its value; ``offsets``, shape
        (P,), where each piece begins; ``owners``, shape (P - U,), positions in ``used``.
    """
    used = np.empty(len(indices), np.int64)
    counts = np.empty(len(indices), np.int64)
    distinct = 0
    for entry in range(len(indices)):
        feature = indices[entry]
        if place[feature] < 0:
            place[feature] = distinct
            used[distinct] = feature
            counts[distinct] = 0
            distinct += 1
        counts[place[feature]] += 1
    pieces = 0
    for k in range(distinct):
        pieces += -(-counts[k] // most)
    offsets = np.empty(pieces, np.int64)
    owners = np.empty(pieces - distinct, np.int64)
    following = np.empty(distinct, np.int64)  # where entries beyond the first piece go
    position = 0
    for k in range(distinct):
        offsets[k] = position
        position += min(counts[k], most)
    piece = distinct
    for k in range(distinct):
        following[k] = position
        left = counts[k] - most
        while left > 0:
            offsets[piece] = position
            owners[piece - distinct] = k
            position += min(left, most)
            left -= most
            piece += 1
    rows = np.empty(len(indices), np.int64)
    row_values = np.empty(len(indices), np.float32)
    seen = np.zeros(distinct, np.int64)
    for row in range(len(splits) - 1):
        for entry in range(splits[row], splits[row + 1]):
            k = place[indices[entry]]
            if seen[k] < most:
                at = offsets[k] + seen[k]
                seen[k] += 1
            else:
                at = following[k]
                following[k] += 1
            rows[at] = row
            row_values[at] = values[entry]
    for k in range(distinct):
        place[used[k]] = -1
    return used[:distinct].copy(), rows, row_values, offsets, owners

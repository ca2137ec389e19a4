"""A batch of examples as the tensors that a step of a batched model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.batched._transpose import by_feature
from trainer.examples import Examples
from trainer.loss import Loss

__all__ = ["GroupBatch", "batches_of"]

#: Entries of one feature that are summed one after the other; longer runs are summed in parts.
_PIECE = 64


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """n examples, the same for every member of a group.

    The entries come twice: row by row, to sum embeddings, and feature by feature, to sum
    gradients, so that either is one pass in a fixed order without atomic additions.

    Attributes:
        features: int64, shape (nnz,): feature of each entry, row by row.
        values: float32, shape (nnz,).
        offsets: int64, shape (n,): where each row's entries begin.
        used: int64, shape (U,): distinct features.
        rows: int64, shape (nnz,): row of each entry, piece by piece.
        row_values: float32, shape (nnz,).
        pieces: int64, shape (P,): where each piece begins; the first U are of ``used``.
        owners: int64, shape (P - U,): position in ``used`` of the others.
        classes: int64, shape (m,): classes of the pairs, row by row, the most wanted first.
        class_rows: int64, shape (m,): row of each pair.
        shares: float32, shape (m,): how wanted each is; a row's sum to 1, or, for the one-vs-all
            loss, its largest is 1.
        scale: float32, shape (n,): weight of each example, over n.
        class_splits: int64, shape (n + 1,), always in host memory.
    """

    features: Tensor
    values: Tensor
    offsets: Tensor
    used: Tensor
    rows: Tensor
    row_values: Tensor
    pieces: Tensor
    owners: Tensor
    classes: Tensor
    class_rows: Tensor
    shares: Tensor
    scale: Tensor
    class_splits: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scale)

    def tensors(self) -> dict[str, Any]:
        """Those that go to the device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def pinned(self) -> GroupBatch:
        """The same in page-locked memory, from which copies run beside computation."""
        return replace(self, **{name: t.pin_memory() for name, t in self.tensors().items()})

    def to(self, device: torch.device) -> GroupBatch:
        """The same on a device; from pinned memory, the copy may still be under way."""
        moved = {name: t.to(device, non_blocking=True) for name, t in self.tensors().items()}
        return replace(self, **moved)


def _by_share(examples: Examples, loss: Loss) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Classes and shares as of :class:`GroupBatch`."""
    classes, shares = examples.classes.astype(np.int64), examples.class_weights
    if loss == "softmax" or not len(examples):
        return classes, shares
    rows = np.repeat(np.arange(len(examples)), np.diff(examples.class_splits))
    largest: NDArray[np.float32] = np.maximum.reduceat(shares, examples.class_splits[:-1])
    wanted = shares / largest[rows]
    order = np.lexsort((-wanted, rows))
    return classes[order], wanted[order]


def batches_of(
    source: Iterable[Examples], num_features: int, loss: Loss, mean_weight: float = 1.0
) -> Iterator[GroupBatch]:
    """Batches in host memory, one for each item of ``source``.

    Args:
        source: batches of examples.
        num_features: F.
        loss: decides what ``shares`` are.
        mean_weight: what an example's weight is divided by.
    """
    place = np.full(num_features, -1, np.int64)
    for examples in source:
        batch, n = examples.features, len(examples)
        used, rows, row_values, pieces, owners = by_feature(
            batch.indices, batch.values, batch.splits, _PIECE, place
        )
        classes, shares = _by_share(examples, loss)
        arrays: dict[str, NDArray[Any]] = {
            "features": batch.indices.astype(np.int64),
            "values": batch.values,
            "offsets": batch.splits[:-1].astype(np.int64),
            "used": used,
            "rows": rows,
            "row_values": row_values,
            "pieces": pieces,
            "owners": owners,
            "classes": classes,
            "class_rows": np.repeat(np.arange(n), np.diff(examples.class_splits)),
            "shares": shares,
            "scale": examples.weights / np.float32(mean_weight * n),
        }
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        yield GroupBatch(**tensors, class_splits=examples.class_splits)

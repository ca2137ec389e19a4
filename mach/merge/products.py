"""Sets of products a search may be restricted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mach.errors import InvalidInput

__all__ = ["ProductSet"]

_LIST_SHARE = 8  # a set of up to K / 8 products is kept as a list


class ProductSet:
    """Which of K products a search may return; made once, used by any number of searches.

    A few products allowed are kept as a list, a few blocked as another; what a condition on the
    catalog selects as one bit a product. Sets intersect with ``&``.

    Attributes:
        num_classes: K.
        size: how many products are allowed.
        listed: the products allowed before ``blocked`` are taken away, increasing, uint32; None
            where they are too many to list.
        bitmap: the same as one bit a product, least significant first, uint8, shape
            (ceil(K / 8),); None where all are allowed, or ``listed`` says it and nobody has asked
            for bits.
        blocked: products taken away, increasing, uint32; all of them allowed otherwise.
    """

    def __init__(
        self,
        num_classes: int,
        listed: NDArray[np.uint32] | None,
        bitmap: NDArray[np.uint8] | None,
        base_size: int,
        blocked: NDArray[np.uint32],
    ) -> None:
        self.num_classes = num_classes
        self.listed = listed
        self.bitmap = bitmap
        self.blocked = blocked
        if len(blocked) and listed is not None:
            self.listed = np.setdiff1d(listed, blocked, assume_unique=True)
            base_size = len(self.listed)
            self.blocked = _NONE
        elif len(blocked) and bitmap is not None:
            self.blocked = blocked[_bits_at(bitmap, blocked)]
        self.size = base_size - len(self.blocked)

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_]) -> ProductSet:
        """The products where ``mask`` (bool, shape (K,)) is true."""
        mask = np.asarray(mask)
        if mask.ndim != 1 or mask.dtype != np.bool_ or not len(mask):
            raise InvalidInput("mask", "must be one boolean a product")
        return cls._of(
            len(mask), np.packbits(mask, bitorder="little"), int(np.count_nonzero(mask)), _NONE
        )

    @classmethod
    def allow(
        cls, classes: Sequence[int] | NDArray[np.integer[Any]], num_classes: int
    ) -> ProductSet:
        """Only ``classes``; repeated ones count once."""
        listed = _checked(classes, num_classes)
        if len(listed) * _LIST_SHARE <= num_classes:
            return cls(num_classes, listed, None, len(listed), _NONE)
        mask = np.zeros(num_classes, np.bool_)
        mask[listed] = True
        return cls.from_mask(mask)

    @classmethod
    def block(
        cls, classes: Sequence[int] | NDArray[np.integer[Any]], num_classes: int
    ) -> ProductSet:
        """All but ``classes``."""
        blocked = _checked(classes, num_classes)
        if len(blocked) * _LIST_SHARE <= num_classes and len(blocked) <= _MOST_BLOCKED:
            return cls(num_classes, None, None, num_classes, blocked)
        mask = np.ones(num_classes, np.bool_)
        mask[blocked] = False
        return cls.from_mask(mask)

    @classmethod
    def _of(
        cls, num_classes: int, bitmap: NDArray[np.uint8], size: int, blocked: NDArray[np.uint32]
    ) -> ProductSet:
        listed = None
        if size * _LIST_SHARE <= num_classes:
            bits = np.unpackbits(bitmap, count=num_classes, bitorder="little")
            listed = np.flatnonzero(bits).astype(np.uint32)
        return cls(num_classes, listed, bitmap if listed is None else None, size, blocked)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        arrays = (self.listed, self.bitmap, self.blocked)
        return sum(array.nbytes for array in arrays if array is not None)

    def __contains__(self, label: int) -> bool:
        """Whether class ``label`` is allowed."""
        if not 0 <= label < self.num_classes:
            return False
        one = np.array([label], np.uint32)
        if np.isin(one, self.blocked)[0]:
            return False
        if self.listed is not None:
            return bool(np.isin(one, self.listed)[0])
        return self.bitmap is None or bool(_bits_at(self.bitmap, one)[0])

    def __and__(self, other: ProductSet) -> ProductSet:
        """The products allowed by both."""
        if self.num_classes != other.num_classes:
            raise InvalidInput("allowed", "sets of different numbers of products do not intersect")
        few, many = self, other
        if few.listed is None or (many.listed is not None and len(many.listed) < len(few.listed)):
            few, many = many, few
        blocked = np.union1d(few.blocked, many.blocked)
        if few.listed is not None:
            listed = few.listed
            if many.listed is not None:
                listed = listed[np.isin(listed, many.listed, assume_unique=True)]
            elif many.bitmap is not None:
                listed = listed[_bits_at(many.bitmap, listed)]
            return ProductSet(self.num_classes, listed, None, len(listed), blocked)
        if few.bitmap is None or many.bitmap is None:
            bitmap = few.bitmap if many.bitmap is None else many.bitmap
            if bitmap is None:
                return ProductSet.block(blocked, self.num_classes)
        else:
            bitmap = few.bitmap & many.bitmap
        size = int(np.bitwise_count(bitmap).sum(dtype=np.int64))
        return ProductSet._of(self.num_classes, bitmap, size, blocked)

    def as_mask(self) -> NDArray[np.bool_]:
        """The products allowed, as one boolean each, shape (K,); made anew."""
        if self.listed is not None:
            mask = np.zeros(self.num_classes, np.bool_)
            mask[self.listed] = True
        elif self.bitmap is not None:
            bits = np.unpackbits(self.bitmap, count=self.num_classes, bitorder="little")
            mask = bits.astype(np.bool_)
        else:
            mask = np.ones(self.num_classes, np.bool_)
        mask[self.blocked] = False
        return mask

    def as_bitmap(self) -> NDArray[np.uint8]:
        """The products allowed before ``blocked`` are taken away as one bit each; kept."""
        if self.bitmap is None and self.listed is not None:
            bitmap = np.zeros(-(-self.num_classes // 8), np.uint8)
            bits = np.left_shift(1, self.listed & 7).astype(np.uint8)
            np.bitwise_or.at(bitmap, self.listed >> 3, bits)
            self.bitmap = bitmap
        elif self.bitmap is None:
            self.bitmap = np.packbits(np.ones(self.num_classes, np.bool_), bitorder="little")
        return self.bitmap


_NONE = np.empty(0, np.uint32)
_MOST_BLOCKED = 10_000  # more than that many are not searched for only to be dropped


def _bits_at(bitmap: NDArray[np.uint8], classes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    bits: NDArray[np.uint8] = (
        bitmap[classes >> np.uint32(3)] >> (classes & np.uint32(7)).astype(np.uint8)
    ) & 1
    return bits.astype(np.bool_)


def _checked(
    classes: Sequence[int] | NDArray[np.integer[Any]], num_classes: int
) -> NDArray[np.uint32]:
    checked = np.asarray(classes)
    if checked.size == 0:
        return _NONE
    if checked.ndim != 1 or not np.issubdtype(checked.dtype, np.integer):
        raise InvalidInput("classes", "must be a list of integers")
    if int(checked.min()) < 0 or int(checked.max()) >= num_classes:
        raise InvalidInput("classes", f"a class is not from 0 to {num_classes - 1}")
    return np.unique(checked).astype(np.uint32)

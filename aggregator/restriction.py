"""Which products a request may return: its filter, its allowed and its blocked ids."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aggregator.requests import SearchOptions
from mach.bundle import Catalog
from mach.bundle.catalog import ID_COLUMN
from mach.errors import InvalidInput
from mach.filters import parse_filter
from mach.merge import ProductSet

__all__ = ["Restrictions"]

_CACHED, _CACHED_BYTES = 64, 64 << 20  # sets; the last made is kept in any case
_PASS = 1000  # products of the catalog that one pass looks at while a binary search finds an id

_Key = tuple[str, tuple[str, ...], tuple[str, ...]]


class Restrictions:
    """Makes product sets for a catalog, and keeps those used last. Safe to use from threads.

    A set is at most one bit a product; of few products allowed or blocked, four bytes each.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._kept: OrderedDict[_Key, ProductSet] = OrderedDict()
        self._lock = threading.Lock()

    def product_set(self, options: SearchOptions) -> ProductSet:
        """The products that meet the filter, are allowed, and are not blocked.

        Ids that are not in the catalog are passed over: the caller's stock may be newer.

        Raises:
            InvalidInput: naming the field, if the filter cannot be read.
        """
        if (found := self.known(options)) is not None:
            return found
        allowed, blocked = options.allowed_product_ids, options.blocked_product_ids
        parts = []
        if allowed:
            parts.append(ProductSet.allow(self._classes(allowed), len(self._catalog)))
        if options.filter:
            parts.append(self._filtered(options.filter))
        if blocked:
            parts.append(ProductSet.block(self._classes(blocked), len(self._catalog)))
        made = parts[0] if parts else ProductSet.block([], len(self._catalog))
        for part in parts[1:]:
            made &= part
        self._keep((options.filter, allowed, blocked), made)
        return made

    def known(self, options: SearchOptions) -> ProductSet | None:
        """What :meth:`product_set` returns, if it need not be made."""
        return self._known(
            (options.filter, options.allowed_product_ids, options.blocked_product_ids)
        )

    def _known(self, key: _Key) -> ProductSet | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def _keep(self, key: _Key, made: ProductSet) -> None:
        with self._lock:
            self._kept[key] = made
            total = sum(kept.nbytes for kept in self._kept.values())
            while len(self._kept) > 1 and (len(self._kept) > _CACHED or total > _CACHED_BYTES):
                total -= self._kept.popitem(last=False)[1].nbytes

    def _filtered(self, text: str) -> ProductSet:
        key: _Key = (text, (), ())
        if (found := self._known(key)) is not None:
            return found
        try:
            mask = parse_filter(text).evaluate(self._catalog.table)
        except InvalidInput as error:
            message = str(error).partition(": ")[2]
            raise InvalidInput("options.filter", message) from None
        made = ProductSet.from_mask(mask)
        self._keep(key, made)
        return made

    def _classes(self, product_ids: Sequence[str]) -> NDArray[np.int64]:
        """The classes of those ids that are in the catalog."""
        if len(product_ids) * _PASS > len(self._catalog):
            ids = self._catalog.table[ID_COLUMN]
            listed = pc.is_in(ids, value_set=pa.array(product_ids, ids.type))
            return np.flatnonzero(listed.to_numpy(zero_copy_only=False))
        found = [self._catalog.class_of(product_id) for product_id in product_ids]
        return np.array([one for one in found if one is not None], np.int64)

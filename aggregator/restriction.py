"""Which products a request may return: its filter, its allowed and its blocked ids."""

from __future__ import annotations

import threading
from collections import OrderedDict

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

_CACHED = 64
_FEW_IDS = 64  # for fewer, as many binary searches are quicker than one pass over the catalog

_Key = tuple[str, tuple[str, ...], tuple[str, ...]]


class Restrictions:
    """Makes product sets for a catalog, and keeps those used last. Safe to use from threads.

    A set is one bit a product, so 64 of them for a million products take 8 MB.
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
        key = (options.filter, options.allowed_product_ids, options.blocked_product_ids)
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        made = ProductSet.from_mask(self._mask(options))
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _CACHED:
                self._kept.popitem(last=False)
        return made

    def _mask(self, options: SearchOptions) -> NDArray[np.bool_]:
        if options.allowed_product_ids:
            mask = self._listed(options.allowed_product_ids)
        else:
            mask = np.ones(len(self._catalog), np.bool_)
        if options.blocked_product_ids:
            mask &= ~self._listed(options.blocked_product_ids)
        if options.filter:
            try:
                mask &= parse_filter(options.filter).evaluate(self._catalog.table)
            except InvalidInput as error:
                message = str(error).partition(": ")[2]
                raise InvalidInput("options.filter", message) from None
        return mask

    def _listed(self, product_ids: tuple[str, ...]) -> NDArray[np.bool_]:
        if len(product_ids) > _FEW_IDS:
            ids = self._catalog.table[ID_COLUMN]
            listed = pc.is_in(ids, value_set=pa.array(product_ids, ids.type))
            mask: NDArray[np.bool_] = listed.to_numpy(zero_copy_only=False)
            return mask
        mask = np.zeros(len(self._catalog), np.bool_)
        classes = [self._catalog.class_of(product_id) for product_id in product_ids]
        mask[[found for found in classes if found is not None]] = True
        return mask

"""The walk for either kind of table, chosen when code is compiled."""

from __future__ import annotations

from typing import Any

from numba.extending import overload

from mach.merge._affine import walk_affine
from mach.merge._plan import AffinePlan, StoredPlan
from mach.merge._query import Query
from mach.merge._stored import walk_stored
from mach.merge._types import Int

__all__ = ["walk"]


def walk(
    query: Query, plan: AffinePlan | StoredPlan, num_classes: Int, q: Int, start: Int, end: Int
) -> None:
    """Look at the members of row q's listed buckets ``start`` to ``end``; for compiled code."""
    raise NotImplementedError


@overload(walk)
def _walk_by_plan(query: Any, plan: Any, num_classes: Any, q: Any, start: Any, end: Any) -> Any:
    if plan.instance_class is AffinePlan:

        def by_hash(query: Any, plan: Any, num_classes: Any, q: Any, start: Any, end: Any) -> Any:
            walk_affine(query, plan, num_classes, q, start, end)

        return by_hash

    def by_lists(query: Any, plan: Any, num_classes: Any, q: Any, start: Any, end: Any) -> Any:
        walk_stored(query, plan, q, start, end)

    return by_lists

"""Results as messages of ``mach.v1``."""

from __future__ import annotations

import base64
import math
from datetime import date, time
from decimal import Decimal
from typing import Any

from aggregator.coverage import Coverage
from aggregator.fanout import Fleet
from aggregator.fanout.endpoint import Endpoint, State
from aggregator.results import SearchResult, Timings
from mach.v1 import search_pb2

__all__ = ["fill_result", "fill_timings", "plain", "shard_state"]


_EXACT = 2**53


def fill_result(message: search_pb2.SearchResult, result: SearchResult) -> None:
    """Write one query's result."""
    add = message.products.add
    products = [
        add(product_id=product_id, score=score)
        for product_id, score in zip(result.product_ids, result.scores, strict=True)
    ]
    if result.attributes is not None:
        for product, attributes in zip(products, result.attributes, strict=True):
            product.attributes.update(plain(attributes))
    if result.explanations is not None:
        for product, parts in zip(products, result.explanations, strict=True):
            for repetition, bucket, value in parts:
                product.explanation.add(repetition=repetition, bucket=bucket, log_probability=value)
    _fill_coverage(message.coverage, result.coverage)


def _fill_coverage(message: search_pb2.Coverage, coverage: Coverage) -> None:
    message.answered = coverage.answered
    message.total = coverage.total
    for repetition, reason in coverage.missing.items():
        message.missing.add(repetition=repetition, reason=int(reason))


def fill_timings(message: search_pb2.Timings, timings: Timings, total_seconds: float) -> None:
    """Write where a call's time went."""
    message.featurize_us = _microseconds(timings.featurize)
    message.queue_us = _microseconds(timings.queue)
    message.shards_us = _microseconds(timings.shards)
    message.merge_us = _microseconds(timings.merge)
    message.total_us = _microseconds(total_seconds)


def _microseconds(seconds: float) -> int:
    return max(0, int(seconds * 1e6))


def shard_state(endpoint: Endpoint, fleet: Fleet) -> search_pb2.ShardState:
    """Describe one shard address."""
    standing, message = fleet.standing(endpoint)
    return search_pb2.ShardState(
        address=endpoint.address,
        repetitions=endpoint.repetitions,
        bundle_version=endpoint.bundle_versions[0] if endpoint.bundle_versions else "",
        ready=standing == State.READY.value,
        message=message,
    )


def plain(value: Any) -> Any:
    """What a ``google.protobuf.Struct`` can hold.

    Dates and times become ISO 8601 text, decimals numbers, whole numbers beyond 2**53, of which
    a double loses digits, text, bytes base64; what is not a number has no JSON form and becomes
    null.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | Decimal):
        return _number(value)
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _number(value: float | Decimal) -> float | str | None:
    if isinstance(value, int) and abs(value) > _EXACT:
        return str(value)
    return float(value) if math.isfinite(value) else None

"""``mach.v1.SearchService``: messages to searches and back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, TypeVar

from aggregator.core import Aggregator
from aggregator.replies import fill_result, fill_timings, shard_state
from aggregator.requests import Query, read_options, read_query
from mach.errors import InvalidInput
from mach.serving import charge
from mach.v1 import search_pb2, search_pb2_grpc

__all__ = ["SearchServicer"]

_logger = logging.getLogger(__name__)

_Response = TypeVar("_Response", search_pb2.SearchResponse, search_pb2.SearchBatchResponse)

#: Of a caller's deadline, kept at least: what is late by a little on a busy machine is late by a
#: share of the time that was allowed, and a reason comes only if it comes before the deadline.
_MARGIN_SHARE = 0.05


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """Parses, calls the core, and leaves errors to the interceptor."""

    def __init__(
        self,
        aggregator: Aggregator,
        *,
        default_seconds: float,
        margin_seconds: float,
        max_message_bytes: int,
        log_queries: bool = False,
    ) -> None:
        """Serve a core.

        Args:
            aggregator: the core.
            default_seconds: time for a call without a deadline.
            margin_seconds: what is kept of a deadline for merging and the way back; at least
                5 %, at most half of the deadline.
            max_message_bytes: the largest answer that can be sent.
            log_queries: whether query texts go to the log.
        """
        self._aggregator = aggregator
        self._default_seconds = default_seconds
        self._margin_seconds = margin_seconds
        self._max_message_bytes = max_message_bytes
        self._log_queries = log_queries

    async def Search(self, request: search_pb2.SearchRequest, context: Any) -> Any:
        """One query."""
        started = time.perf_counter()
        core = self._aggregator
        served = core.bundle(request.options.bundle_version)
        num_features = served.manifest.num_features
        query = read_query("query", request.query, core.limits, num_features)
        if self._log_queries:
            _log([query])
        answer = await core.search(
            served, [query], read_options(request.options), self._seconds(context), single=True
        )
        response = search_pb2.SearchResponse(bundle_version=answer.bundle_version)
        fill_result(response.result, answer.results[0])
        fill_timings(response.timings, answer.timings, time.perf_counter() - started)
        return self._sendable(response)

    async def SearchBatch(self, request: search_pb2.SearchBatchRequest, context: Any) -> Any:
        """Several queries."""
        started = time.perf_counter()
        core = self._aggregator
        limit = core.limits.max_batch_size
        if not 1 <= len(request.queries) <= limit:
            raise InvalidInput("queries", f"must be 1 to {limit}, got {len(request.queries)}")
        charge(len(request.queries))
        served = core.bundle(request.options.bundle_version)
        num_features = served.manifest.num_features
        queries = [
            read_query(f"queries[{number}]", query, core.limits, num_features)
            for number, query in enumerate(request.queries)
        ]
        if self._log_queries:
            _log(queries)
        answer = await core.search(
            served, queries, read_options(request.options), self._seconds(context), single=False
        )
        response = search_pb2.SearchBatchResponse(bundle_version=answer.bundle_version)
        for result in answer.results:
            fill_result(response.results.add(), result)
        fill_timings(response.timings, answer.timings, time.perf_counter() - started)
        return self._sendable(response)

    async def DescribeFleet(self, request: Any, context: Any) -> search_pb2.DescribeFleetResponse:
        """The bundle and the shards."""
        core = self._aggregator
        served = core.bundle("")
        manifest = served.manifest
        return search_pb2.DescribeFleetResponse(
            bundle_version=served.version,
            num_products=manifest.num_classes,
            num_repetitions=manifest.num_repetitions,
            num_buckets=manifest.num_buckets,
            num_features=manifest.num_features,
            max_k=core.limits.max_k,
            max_batch_size=core.limits.max_batch_size,
            shards=[
                shard_state(endpoint, core.fleet) for endpoint in core.fleet.endpoints.values()
            ],
        )

    def _sendable(self, response: _Response) -> _Response:
        """An answer that gRPC will send.

        Beyond its limit it would tell the caller that the server is overloaded, as often as it
        asks again.

        Raises:
            InvalidInput: if it is too large.
        """
        size = response.ByteSize()
        if size > self._max_message_bytes:
            raise InvalidInput(
                "options",
                f"the answer has {size} bytes, more than the {self._max_message_bytes} of "
                "--max-message-bytes; ask for fewer products or queries, or without attributes "
                "and explanations",
            )
        return response

    def _seconds(self, context: Any) -> float:
        """How long the shards may take."""
        remaining = context.time_remaining()
        if remaining is None:
            remaining = self._default_seconds
        margin = max(self._margin_seconds, remaining * _MARGIN_SHARE)
        return float(max(remaining - margin, remaining / 2))


def _log(queries: Iterable[Query]) -> None:
    for query in queries:
        if isinstance(query, str):  # features have no text
            _logger.info("query", extra={"query": query})

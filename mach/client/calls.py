"""What the two clients share: channels, messages, errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import grpc

from mach.errors import InvalidInput, MachError, Overloaded, from_status
from mach.features import SparseBatch
from mach.v1 import search_pb2
from mach.wire import sparse_to_proto

__all__ = [
    "MOST_TOKENS",
    "TOKENS_EARNED",
    "Query",
    "channel_options",
    "check_timeout",
    "make_metadata",
    "make_options",
    "make_query",
    "read_error",
]

#: Text, or one row of features made with the bundle's featurizer.
Query = str | SparseBatch

#: Retries are throttled as gRFC A6 says, gRPC's own and those of `mach.client.retries`: a failure
#: takes a token, an answer gives a part of one back, and at half of the most none is retried.
MOST_TOKENS, TOKENS_EARNED = 10, 0.2
_MOST_SECONDS = 365 * 86_400
_MOST_BYTES = 2**31 - 1  # as gRPC counts them
_TOO_LARGE = "message larger than max"  # gRPC says so by the status of an overload
_PUSHBACK = "grpc-retry-pushback-ms"
_REQUEST_ID = "x-request-id"
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,63}")  # as the servers read it


def channel_options(max_attempts: int, max_message_bytes: int) -> list[tuple[str, Any]]:
    """Options of a channel to an aggregator.

    Raises:
        InvalidInput: if an argument is out of range.
    """
    _check_whole("max_attempts", max_attempts, 5)
    _check_whole("max_message_bytes", max_message_bytes, _MOST_BYTES)
    # Where the name has several addresses, calls go round them.
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if max_attempts > 1:
        config["methodConfig"] = [
            {
                "name": [{"service": "mach.v1.SearchService"}],
                "retryPolicy": {
                    "maxAttempts": max_attempts,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    # CANCELLED, where this side did not cancel: the server stopped before it
                    # had taken the call. For RESOURCE_EXHAUSTED see `mach.client.retries`.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
        # Few failures are retried where most calls fail: that is an outage, not a hiccup.
        config["retryThrottling"] = {"maxTokens": MOST_TOKENS, "tokenRatio": TOKENS_EARNED}
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # gRPC's own pauses grow to two minutes, in which a fleet that is back is not noticed.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _check_whole(name: str, value: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= most:
        raise InvalidInput(name, f"must be a whole number from 1 to {most}, got {value!r}")


def check_timeout(timeout: float) -> float:
    """The seconds a call may take.

    Raises:
        InvalidInput: if they are no number, not above 0, or more than a year.
    """
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, Real)
        or not 0 < timeout <= _MOST_SECONDS
    ):
        message = f"must be above 0 and at most {_MOST_SECONDS} seconds, got {timeout!r}"
        raise InvalidInput("timeout", message)
    return timeout


def make_query(query: Query, field: str = "query") -> search_pb2.Query:
    """Write a query.

    Raises:
        InvalidInput: if it is neither text nor one row of features.
    """
    if isinstance(query, str):
        try:
            return search_pb2.Query(text=query)
        except ValueError:
            raise InvalidInput(f"{field}.text", "is not valid Unicode") from None
    if isinstance(query, SparseBatch):
        return search_pb2.Query(features=sparse_to_proto(query))
    raise InvalidInput(field, f"must be text or a SparseBatch, got {type(query).__name__}")


def make_queries(queries: Iterable[Query]) -> list[search_pb2.Query]:
    """Write several queries.

    Raises:
        InvalidInput: if one is neither text nor one row of features.
    """
    if isinstance(queries, str):
        raise InvalidInput("queries", "must be a list of queries, got one text")
    return [make_query(query, f"queries[{number}]") for number, query in enumerate(queries)]


def make_options(
    k: int,
    minimum_repetitions: int,
    attributes: bool,
    explain: bool,
    bundle_version: str,
    filter: str,
    allowed: Sequence[str],
    blocked: Sequence[str],
) -> search_pb2.SearchOptions:
    """Write how to search.

    Raises:
        InvalidInput: if a number cannot be sent, or ids are one text; the server checks the rest.
    """
    if not isinstance(k, Integral) or k < 1:  # 0 would ask for the server's default
        raise InvalidInput("options.k", f"must be a whole number of at least 1, got {k!r}")
    for name, ids in (("allowed", allowed), ("blocked", blocked)):
        if isinstance(ids, str):  # which would be a list of its letters
            raise InvalidInput(name, "must be a list of product ids, got one text")
    try:
        return search_pb2.SearchOptions(
            k=k,
            minimum_repetitions=minimum_repetitions,
            include_attributes=attributes,
            explain=explain,
            bundle_version=bundle_version,
            filter=filter,
            allowed_product_ids=allowed,
            blocked_product_ids=blocked,
        )
    except (TypeError, ValueError) as error:
        raise InvalidInput("options", str(error)) from None


def make_metadata(request_id: str) -> list[tuple[str, str]]:
    """Write what goes with a call.

    Raises:
        InvalidInput: if the request id is not empty and not one that the servers accept.
    """
    if not request_id:
        return []
    if not _WELL_FORMED_ID.fullmatch(request_id):
        raise InvalidInput(
            "request_id",
            "must be 1 to 64 letters, digits and . _ : / + = @ -, and begin with one "
            f"of the former, got {request_id[:80]!r}",
        )
    return [(_REQUEST_ID, request_id)]


def read_error(error: grpc.RpcError) -> MachError:
    """The error of this project for a failed call."""
    call: Any = error  # what gRPC raises is always a call, but its type does not say so
    details = call.details() or ""
    if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
        return InvalidInput("max_message_bytes", details)
    found = from_status(call.code(), details)
    for key, value in call.trailing_metadata() or ():
        if key == _REQUEST_ID:
            found.request_id = str(value)
        elif key == _PUSHBACK and isinstance(found, Overloaded) and str(value).isdigit():
            found.retry_after_ms = int(value)
    return found

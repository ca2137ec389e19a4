"""What a fleet answers, as plain immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import struct_pb2

from mach.v1 import search_pb2

__all__ = [
    "Coverage",
    "FleetDescription",
    "Product",
    "RepetitionScore",
    "SearchResult",
    "ShardState",
    "Timings",
]

_REASON_PREFIX = "MISSING_REASON_"


@dataclass(frozen=True, slots=True)
class RepetitionScore:
    """A product's score in one repetition.

    Attributes:
        repetition: which.
        bucket: the bucket the product hashes to.
        log_probability: the classifier's, of that bucket.
    """

    repetition: int
    bucket: int
    log_probability: float


@dataclass(frozen=True, slots=True)
class Product:
    """One product found.

    Attributes:
        product_id: the catalog's id.
        score: the merged score; higher is better, comparable within a query.
        attributes: the catalog's attributes; empty unless asked for.
        explanation: the parts of the score; empty unless asked for.
    """

    product_id: str
    score: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    explanation: tuple[RepetitionScore, ...] = ()


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the model an answer rests on.

    Attributes:
        answered: repetitions merged.
        total: repetitions of the bundle.
        missing: why each other repetition is missing: ``timeout``, ``unavailable``,
            ``overloaded``, ``version_mismatch`` or ``invalid_answer``.
    """

    answered: int
    total: int
    missing: Mapping[int, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every repetition was merged."""
        return self.answered == self.total


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server's time went, in microseconds.

    Attributes:
        featurize_us: text to features.
        queue_us: waiting to be sent together with other queries.
        shards_us: from the first message to a shard to the last answer used.
        merge_us: merge and top-k.
        total_us: from receipt to answer.
    """

    featurize_us: int
    queue_us: int
    shards_us: int
    merge_us: int
    total_us: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Products for one query, best first.

    Attributes:
        products: at most k; none for a query of which nothing is known.
        coverage: the repetitions the scores rest on.
        bundle_version: the version that answered.
        timings: of the call, shared by the results of a batch.
    """

    products: tuple[Product, ...]
    coverage: Coverage
    bundle_version: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class ShardState:
    """One shard address as the aggregator sees it.

    Attributes:
        address: where it is.
        repetitions: those it serves.
        bundle_version: what it holds; empty where unknown.
        ready: whether it is being used.
        message: why not.
    """

    address: str
    repetitions: tuple[int, ...]
    bundle_version: str
    ready: bool
    message: str


@dataclass(frozen=True, slots=True)
class FleetDescription:
    """What a fleet serves, and the state of its shards.

    Attributes:
        bundle_version: the version served.
        num_products: K.
        num_repetitions: R.
        num_buckets: B.
        num_features: features a query vector may have.
        max_k: largest k accepted.
        max_batch_size: largest batch accepted.
        shards: every shard address known.
    """

    bundle_version: str
    num_products: int
    num_repetitions: int
    num_buckets: int
    num_features: int
    max_k: int
    max_batch_size: int
    shards: tuple[ShardState, ...]


def read_response(response: search_pb2.SearchResponse) -> SearchResult:
    """The result of one query."""
    return _read_result(response.result, response.bundle_version, _read_timings(response.timings))


def read_batch(response: search_pb2.SearchBatchResponse) -> list[SearchResult]:
    """The results of several queries, in their order."""
    timings = _read_timings(response.timings)
    return [_read_result(result, response.bundle_version, timings) for result in response.results]


def read_description(response: search_pb2.DescribeFleetResponse) -> FleetDescription:
    """The state of a fleet."""
    return FleetDescription(
        bundle_version=response.bundle_version,
        num_products=response.num_products,
        num_repetitions=response.num_repetitions,
        num_buckets=response.num_buckets,
        num_features=response.num_features,
        max_k=response.max_k,
        max_batch_size=response.max_batch_size,
        shards=tuple(
            ShardState(
                shard.address,
                tuple(shard.repetitions),
                shard.bundle_version,
                shard.ready,
                shard.message,
            )
            for shard in response.shards
        ),
    )


def _read_result(
    message: search_pb2.SearchResult, bundle_version: str, timings: Timings
) -> SearchResult:
    coverage = message.coverage
    return SearchResult(
        tuple(_read_product(product) for product in message.products),
        Coverage(
            coverage.answered,
            coverage.total,
            {missing.repetition: _reason(missing.reason) for missing in coverage.missing},
        ),
        bundle_version,
        timings,
    )


def _read_product(message: search_pb2.Product) -> Product:
    return Product(
        message.product_id,
        message.score,
        _read_struct(message.attributes) if message.HasField("attributes") else {},
        tuple(
            RepetitionScore(part.repetition, part.bucket, part.log_probability)
            for part in message.explanation
        ),
    )


def _reason(value: int) -> str:
    # A newer server may give reasons that this client has no name for.
    if value not in search_pb2.MissingReason.values():
        return str(value)
    return search_pb2.MissingReason.Name(value).removeprefix(_REASON_PREFIX).lower()  # type: ignore[arg-type]


def _read_timings(message: search_pb2.Timings) -> Timings:
    return Timings(
        message.featurize_us,
        message.queue_us,
        message.shards_us,
        message.merge_us,
        message.total_us,
    )


def _read_struct(message: struct_pb2.Struct) -> dict[str, Any]:
    return {name: _read_value(value) for name, value in message.fields.items()}


def _read_value(message: struct_pb2.Value) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "struct_value":
        return _read_struct(message.struct_value)
    if kind == "list_value":
        return [_read_value(item) for item in message.list_value.values]
    return None if kind in (None, "null_value") else getattr(message, kind)

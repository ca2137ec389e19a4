"""What is asked for, checked: every mistake is named by the request field it is in."""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.policy import Limits
from mach.errors import InvalidInput
from mach.features import SparseBatch
from mach.v1 import search_pb2
from mach.wire import sparse_from_proto

__all__ = ["Query", "SearchOptions", "read_options", "read_query"]

DEFAULT_K = 10

#: Text, or one row of features that has been checked.
Query = str | SparseBatch


@dataclass(frozen=True)
class SearchOptions:
    """How a call's queries are searched; see ``mach.v1.SearchOptions``.

    Attributes:
        k: how many products.
        minimum_repetitions: repetitions an answer needs; 0 means the server's default.
        include_attributes: return the catalog's attributes.
        explain: return each repetition's part of the score.
        bundle_version: answer from this version only; empty for any.
        filter: condition on attributes; empty for all products.
        allowed_product_ids: keep only these; none for all.
        blocked_product_ids: never return these.
    """

    k: int = DEFAULT_K
    minimum_repetitions: int = 0
    include_attributes: bool = False
    explain: bool = False
    bundle_version: str = ""
    filter: str = ""
    allowed_product_ids: tuple[str, ...] = ()
    blocked_product_ids: tuple[str, ...] = ()

    @property
    def restricts(self) -> bool:
        """Whether not all products are wanted."""
        return bool(self.filter or self.allowed_product_ids or self.blocked_product_ids)

    def check(self, limits: Limits, num_repetitions: int) -> None:
        """Refuse what is out of range.

        Raises:
            InvalidInput: naming the field.
        """
        if not 1 <= self.k <= limits.max_k:
            raise InvalidInput("options.k", f"must be from 1 to {limits.max_k}, got {self.k}")
        if not 0 <= self.minimum_repetitions <= num_repetitions:
            raise InvalidInput(
                "options.minimum_repetitions",
                f"must be from 0 to {num_repetitions}, got {self.minimum_repetitions}",
            )
        for name in ("allowed_product_ids", "blocked_product_ids"):
            if len(ids := getattr(self, name)) > limits.max_product_ids:
                raise InvalidInput(
                    f"options.{name}", f"{len(ids)} ids, at most {limits.max_product_ids}"
                )
        if len(self.filter) > limits.max_text_length:
            raise InvalidInput(
                "options.filter",
                f"{len(self.filter)} characters, at most {limits.max_text_length}",
            )
        for name in ("filter", "allowed_product_ids", "blocked_product_ids", "bundle_version"):
            _check_unicode(f"options.{name}", getattr(self, name))


def read_options(message: search_pb2.SearchOptions) -> SearchOptions:
    """Read a request's options, unchecked."""
    return SearchOptions(
        k=message.k or DEFAULT_K,
        minimum_repetitions=message.minimum_repetitions,
        include_attributes=message.include_attributes,
        explain=message.explain,
        bundle_version=message.bundle_version,
        filter=message.filter,
        allowed_product_ids=tuple(message.allowed_product_ids),
        blocked_product_ids=tuple(message.blocked_product_ids),
    )


def read_query(field: str, message: search_pb2.Query, limits: Limits, num_features: int) -> Query:
    """Read and check one query.

    Args:
        field: where it stands in the request, such as ``queries[3]``.
        message: the query.
        limits: what is accepted.
        num_features: how many features the bundle has.

    Raises:
        InvalidInput: naming the field.
    """
    form = message.WhichOneof("query")
    if form == "text":
        check_text(f"{field}.text", message.text, limits)
        return message.text
    if form is None:
        raise InvalidInput(field, "needs text or features")
    try:
        row = sparse_from_proto(message.features, num_features)
    except InvalidInput as error:
        raise InvalidInput(f"{field}.{error.field}", str(error).partition(": ")[2]) from None
    check_row(f"{field}.features", row, limits)
    return row


def check_text(field: str, text: str, limits: Limits) -> None:
    """Refuse empty and overlong text.

    Raises:
        InvalidInput: naming the field.
    """
    if not text or text.isspace():
        raise InvalidInput(field, "is empty")
    if len(text) > limits.max_text_length:
        raise InvalidInput(field, f"{len(text)} characters, at most {limits.max_text_length}")
    _check_unicode(field, text)


def _check_unicode(field: str, value: str | tuple[str, ...]) -> None:
    """Refuse half surrogates, which a command line makes of bytes that are no UTF-8."""
    try:
        for text in (value,) if isinstance(value, str) else value:
            text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(field, "is not valid Unicode") from None


def check_row(field: str, row: SparseBatch, limits: Limits) -> None:
    """Refuse anything but one row with an acceptable number of features.

    Raises:
        InvalidInput: naming the field.
    """
    if len(row) != 1:
        raise InvalidInput(f"{field}.splits", f"must describe one row, got {len(row)}")
    if len(row.indices) > limits.max_nonzeros:
        raise InvalidInput(
            f"{field}.indices", f"{len(row.indices)} features, at most {limits.max_nonzeros}"
        )

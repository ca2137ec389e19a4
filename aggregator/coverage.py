"""Which repetitions an answer rests on, and why others are missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

from mach.errors import (
    DeadlineExceeded,
    InvalidInput,
    MachError,
    Overloaded,
    Unavailable,
    VersionMismatch,
    VersionNotFound,
)
from mach.v1 import search_pb2

__all__ = ["Coverage", "MissingReason", "reason_of", "too_few"]


class MissingReason(IntEnum):
    """Why a repetition is missing from an answer; the values of ``mach.v1.MissingReason``."""

    TIMEOUT = search_pb2.MISSING_REASON_TIMEOUT
    UNAVAILABLE = search_pb2.MISSING_REASON_UNAVAILABLE
    OVERLOADED = search_pb2.MISSING_REASON_OVERLOADED
    VERSION_MISMATCH = search_pb2.MISSING_REASON_VERSION_MISMATCH
    INVALID_ANSWER = search_pb2.MISSING_REASON_INVALID_ANSWER


_SENTENCES = {
    MissingReason.TIMEOUT: "did not answer in time",
    MissingReason.UNAVAILABLE: "cannot be reached",
    MissingReason.OVERLOADED: "are overloaded",
    MissingReason.VERSION_MISMATCH: "hold another bundle version",
    MissingReason.INVALID_ANSWER: "answered with nonsense",
}


@dataclass(frozen=True)
class Coverage:
    """How much of the model an answer rests on.

    Attributes:
        answered: repetitions merged.
        total: R.
        missing: why each of the others is not.
    """

    answered: int
    total: int
    missing: dict[int, MissingReason]


def reason_of(error: MachError) -> MissingReason:
    """Why a repetition is missing whose shard answered with ``error``."""
    if isinstance(error, DeadlineExceeded):
        return MissingReason.TIMEOUT
    if isinstance(error, Overloaded):
        return MissingReason.OVERLOADED
    if isinstance(error, VersionMismatch | VersionNotFound):
        return MissingReason.VERSION_MISMATCH
    if isinstance(error, Unavailable):
        return MissingReason.UNAVAILABLE
    if isinstance(error, InvalidInput):  # what we sent was checked: it is not what was meant
        return MissingReason.INVALID_ANSWER
    return MissingReason.UNAVAILABLE


def too_few(coverage: Coverage, minimum: int, retry_after_ms: int = 50) -> MachError:
    """The error for an answer that would rest on too few repetitions.

    It is that of the bundle versions, or of the overload, where these alone are to blame.
    """
    counts = Counter(coverage.missing.values())
    causes = ", ".join(f"{count} {_SENTENCES[reason]}" for reason, count in sorted(counts.items()))
    message = (
        f"{coverage.answered} of {coverage.total} repetitions answered, "
        f"{minimum} are needed: {causes}"
    )
    lacking = minimum - coverage.answered
    if counts[MissingReason.VERSION_MISMATCH] >= lacking:
        return VersionMismatch(message)
    if counts[MissingReason.OVERLOADED] >= lacking:
        return Overloaded(message, retry_after_ms)
    return Unavailable(message)

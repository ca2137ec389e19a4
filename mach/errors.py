"""Every error a user can cause or meet, and the gRPC status each becomes.

The tree::

    MachError                  INTERNAL             a defect of ours, an unforeseen failure
    ├── UserError                                   can be mended; the CLI exits with 2
    │   ├── InvalidInput       INVALID_ARGUMENT     a request field or argument is wrong
    │   ├── ConfigError        INVALID_ARGUMENT     settings contradict the machine or others
    │   ├── DataError          INVALID_ARGUMENT     interactions or a catalog are wrong
    │   ├── BundleError        FAILED_PRECONDITION  a bundle is missing, corrupt, unsupported
    │   ├── VersionNotFound    NOT_FOUND            the bundle version is not served here
    │   ├── RepetitionNotFound NOT_FOUND            the shard does not hold the repetition
    │   ├── VersionMismatch    FAILED_PRECONDITION  two parties hold different versions
    │   ├── Unauthenticated    UNAUTHENTICATED      no token, or one that is not known
    │   └── PermissionDenied   PERMISSION_DENIED    the token is not one for this method
    └── ServiceError                                it passes; the caller may retry
        ├── Unavailable        UNAVAILABLE          too few repetitions; not ready; draining
        ├── Overloaded         RESOURCE_EXHAUSTED   a queue is full, the wait too long, or a
        │                                           token's rate used up
        └── DeadlineExceeded   DEADLINE_EXCEEDED    the caller's time is up

A gRPC servicer never chooses a status itself: it lets these errors through and
:func:`status_of` maps them. A client turns a status back with :func:`from_status`.
Messages are one sentence that names the field, file, row, address or version at fault.
"""

from __future__ import annotations

from pathlib import Path

import grpc

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "DeadlineExceeded",
    "InvalidInput",
    "MachError",
    "Overloaded",
    "PermissionDenied",
    "RepetitionNotFound",
    "ServiceError",
    "Unauthenticated",
    "Unavailable",
    "UserError",
    "VersionMismatch",
    "VersionNotFound",
    "from_status",
    "status_of",
]


class MachError(Exception):
    """Base of all errors of this project.

    ``request_id`` is what the server's log calls the call that failed; empty where no server
    answered.
    """

    status: grpc.StatusCode = grpc.StatusCode.INTERNAL
    request_id: str = ""


class UserError(MachError):
    """Base of the errors that whoever called can mend."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class InvalidInput(UserError):
    """Raise when a request field or a function argument is out of its range.

    The message starts with the field's name.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ConfigError(UserError):
    """Raise when settings contradict each other, or ask for what this machine has not."""


class DataError(UserError):
    """Raise when a file of interactions or a catalog cannot be used.

    The message names the file, and the row where one is at fault (rows count from 1,
    the header not included).
    """

    def __init__(self, path: str | Path, message: str, row: int | None = None) -> None:
        where = f"{path}" if row is None else f"{path}, row {row}"
        super().__init__(f"{where}: {message}")
        self.path = path
        self.row = row


class BundleError(UserError):
    """Raise when a bundle is missing, incomplete, corrupt or of an unsupported format."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class VersionNotFound(UserError):
    """Raise when a request names a bundle version that is not loaded here."""

    status = grpc.StatusCode.NOT_FOUND


class RepetitionNotFound(UserError):
    """Raise when a request names a repetition that this shard does not hold.

    Only an aggregator can meet it; a client of one reads NOT_FOUND as a version's.
    """

    status = grpc.StatusCode.NOT_FOUND


class VersionMismatch(UserError):
    """Raise when a shard and an aggregator hold different bundle versions."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class Unauthenticated(UserError):
    """Raise when a request carries no token, or one that is not known."""

    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(UserError):
    """Raise when a request's token is known but does not allow the method."""

    status = grpc.StatusCode.PERMISSION_DENIED


class ServiceError(MachError):
    """Base of the errors that pass: the same call may succeed later."""

    status = grpc.StatusCode.UNAVAILABLE


class Unavailable(ServiceError):
    """Raise when too few repetitions answered, or a server is not ready or draining."""


class Overloaded(ServiceError):
    """Raise when a bounded queue is full, the expected wait exceeds the deadline, or a token
    has used up its rate.

    ``retry_after_ms`` is the push-back sent to the caller.
    """

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_ms: int = 50) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlineExceeded(ServiceError):
    """Raise when the caller's deadline passed before an answer was ready."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


def status_of(error: BaseException) -> grpc.StatusCode:
    """The gRPC status of ``error``; INTERNAL for what is not a :class:`MachError`."""
    return error.status if isinstance(error, MachError) else grpc.StatusCode.INTERNAL


_BY_STATUS: dict[grpc.StatusCode, type[MachError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: VersionMismatch,
    grpc.StatusCode.NOT_FOUND: VersionNotFound,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # by a server that ends; callers cancel themselves
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_status(status: grpc.StatusCode, details: str) -> MachError:
    """The error a client raises for a gRPC status; the inverse of :func:`status_of`."""
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        field, _, message = details.partition(": ")
        return InvalidInput(field, message) if message else UserError(details)
    if status is grpc.StatusCode.CANCELLED:  # by the server's gRPC, see `mach.serving.options`
        return Unavailable("the server dropped the call unread: it is overloaded or stopping")
    return _BY_STATUS.get(status, MachError)(details or status.name)

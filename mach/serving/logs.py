"""Log lines on stderr, for people or as JSON.

Pass fields by ``extra={"bundle_version": ...}``: both formats show them. Lines written during a
call carry its request id and, where it is traced, its trace id. No log line carries a token, nor
query text unless ``--log-queries`` asks for it.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from mach import tracing

__all__ = ["configure_logging", "request_id"]

#: The request id of the call at hand; empty outside calls.
request_id: ContextVar[str] = ContextVar("request_id", default="")

_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _plain(value: object) -> str:
    """On one line, whatever a caller put into it."""
    text = str(value)
    return text if text.isprintable() else repr(text)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        line = (
            f"{_timestamp(record)} {record.levelname:<7} {record.name}: "
            f"{record.getMessage()}{fields}"
        )
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class _CallFields(logging.Filter):
    """Adds ``request_id``, ``trace_id`` and ``span_id`` of the call during which a line is written.

    A field that the line was given stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if current := request_id.get():
            record.__dict__.setdefault("request_id", current)
        if (span := tracing.current()) is not None:
            context = span.get_span_context()
            record.__dict__.setdefault("trace_id", f"{context.trace_id:032x}")
            record.__dict__.setdefault("span_id", f"{context.span_id:016x}")
        return True


class _CallersThatLeft(logging.Filter):
    """Drops gRPC's traceback for an answer that could not be sent because the caller is gone.

    That is no event: its deadline passed or it was cancelled. An answer refused because of a
    defect of ours (a "grpc_call_error") stays.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return "grpc_call_error" in str(error) or not record.getMessage().startswith(
            "ExecuteBatchError raised in core"
        )


_callers_that_left = _CallersThatLeft()


def configure_logging(
    level: Literal["debug", "info", "warning", "error"] = "info",
    style: Literal["text", "json"] = "text",
) -> None:
    """Send all log lines of this process to stderr in one format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    handler.addFilter(_CallFields())  # a handler's filter runs where the line is written
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("grpc._cython.cygrpc").addFilter(_callers_that_left)
    # Its debug lines tell of selectors, not of this program.
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))

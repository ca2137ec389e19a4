"""Log lines on stderr, for people or as JSON.

Pass fields by ``extra={"bundle_version": ...}``: both formats show them. No log line
carries query text.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["configure_logging"]

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


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = (
            f"{_timestamp(record)} {record.levelname:<7} {record.name}: "
            f"{record.getMessage()}{fields}"
        )
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


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
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("grpc._cython.cygrpc").addFilter(_callers_that_left)
    # Its debug lines tell of selectors, not of this program.
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))

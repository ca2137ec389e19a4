"""What a call is known by: its request id, and its span where it is traced."""

from __future__ import annotations

import random
import re
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mach import tracing
from mach.serving.interceptors import Rpc, WrappingInterceptor, code_of
from mach.serving.logs import request_id

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from mach.tracing.making import Spans

__all__ = ["REQUEST_ID", "CallInterceptor"]

#: Metadata that carries a request id: a caller's, and in the trailers the one the server used.
REQUEST_ID = "x-request-id"

#: What a caller may choose: printable, short, and no way to forge a log line.
_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,63}")
_HEADERS = ("traceparent", "tracestate")


class CallInterceptor(WrappingInterceptor):
    """Gives every call a request id, and a span where tracing is on.

    Put it outside all others: what they log and count belongs to the call. Streams live for
    hours and carry many requests, so they have no span; calls that ask for a server's state
    are too many and too dull to have one.
    """

    def __init__(self, *, starts_traces: bool) -> None:
        """Say whether a call that belongs to no trace may begin one."""
        super().__init__()
        self._starts_traces = starts_traces

    def around(self, rpc: Rpc, context: Any) -> AbstractAsyncContextManager[None]:
        """See the class."""
        if not rpc.service.startswith("mach."):
            return nullcontext()
        is_traced = rpc.kind == "unary" and not rpc.method.startswith("Describe")
        return _Call(rpc, context, tracing.spans() if is_traced else None, self._starts_traces)


class _Call(AbstractAsyncContextManager[None]):
    """One call. A call is a task of its own, so what is current in it need not be put back."""

    def __init__(self, rpc: Rpc, context: Any, spans: Spans | None, starts_traces: bool) -> None:
        self._rpc = rpc
        self._context = context
        self._spans = spans
        self._starts_traces = starts_traces
        self._span: Span | None = None

    async def __aenter__(self) -> None:
        metadata = self._context.invocation_metadata() or ()
        given = next((value for key, value in metadata if key == REQUEST_ID), "")
        chosen = given if _WELL_FORMED.fullmatch(given) else f"{random.getrandbits(64):016x}"
        request_id.set(chosen)
        self._context.set_trailing_metadata(((REQUEST_ID, chosen),))
        if self._spans is None:
            return
        caller = self._spans.remote({key: value for key, value in metadata if key in _HEADERS})
        if caller is None and not self._starts_traces:
            return
        self._span = self._spans.start(
            f"{self._rpc.service}/{self._rpc.method}",
            caller,
            kind="server",
            attributes={
                "rpc.system": "grpc",
                "rpc.service": self._rpc.service,
                "rpc.method": self._rpc.method,
                "mach.request_id": chosen,
            },
        )
        tracing.enter(self._span)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._spans is not None and self._span is not None:
            self._spans.end_call(self._span, code_of(self._context, error))

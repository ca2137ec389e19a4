"""What happens around every call: errors become statuses, and calls are counted and timed."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from mach.errors import InvalidInput, MachError, Overloaded, status_of
from mach.serving.guard import count_call
from mach.serving.metrics import ServerMetrics

__all__ = [
    "RETRY_PUSHBACK",
    "ErrorInterceptor",
    "MetricsInterceptor",
    "Rpc",
    "WrappingInterceptor",
    "code_of",
]

#: Trailing metadata by which a server asks for patience; gRPC's own retries obey it.
RETRY_PUSHBACK = "grpc-retry-pushback-ms"

_logger = logging.getLogger(__name__)

#: Most bytes of an error's text, as they travel. It is metadata, and a peer refuses metadata of
#: more than some 8 kB: it would see RESOURCE_EXHAUSTED instead of the error.
_MOST_DETAILS = 1000
_ELLIPSIS = "…"
_CODE_NAMES: dict[Any, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_CODE_NAMES.update({code: code.name for code in grpc.StatusCode})


class Rpc(NamedTuple):
    """A method of a service."""

    kind: str
    """``unary``, ``client_stream``, ``server_stream`` or ``bidi_stream``."""
    service: str
    method: str

    @classmethod
    def of(cls, path: str, handler: Any) -> Rpc:
        """From ``/package.Service/Method``."""
        service, _, method = path.lstrip("/").rpartition("/")
        kinds = {
            (False, False): "unary",
            (True, False): "client_stream",
            (False, True): "server_stream",
            (True, True): "bidi_stream",
        }
        return cls(kinds[handler.request_streaming, handler.response_streaming], service, method)


class _Malformed(NamedTuple):
    """Stands for a request that could not be decoded until the call may answer."""

    message: str


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def lenient(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return _Malformed(str(error))

    return lenient


class WrappingInterceptor(grpc.aio.ServerInterceptor):
    """Runs every call within :meth:`around`. Handlers are wrapped once a method, not a call."""

    #: Whether requests that cannot be decoded are refused here, inside :meth:`around`.
    refuses_malformed = False

    def __init__(self) -> None:
        self._wrapped: dict[int, tuple[Any, Any]] = {}

    @abstractmethod
    def around(self, rpc: Rpc, context: Any) -> AbstractAsyncContextManager[None]:
        """What is entered before and left after the call."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Called by gRPC for each call."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        # By the handler, not by its name: another server may not have what one has.
        kept = self._wrapped.get(id(handler))
        if kept is None:
            rpc = Rpc.of(handler_call_details.method, handler)
            # Keeps the handler too, so that no other one gets its id.
            kept = self._wrapped[id(handler)] = (handler, self._wrap(rpc, handler))
        return kept[1]

    def _wrap(self, rpc: Rpc, handler: Any) -> Any:
        around = self.around
        name = f"{'stream' if handler.request_streaming else 'unary'}_" + (
            "stream" if handler.response_streaming else "unary"
        )
        behavior = getattr(handler, name)
        decode = handler.request_deserializer
        refuses = self.refuses_malformed
        if refuses and not handler.request_streaming and decode is not None:
            decode = _decoder(decode)

        async def call(request: Any, context: Any) -> Any:
            async with around(rpc, context):
                if refuses and type(request) is _Malformed:
                    raise InvalidInput("request", f"cannot be decoded: {request.message}")
                return await behavior(request, context)

        async def generate(request: Any, context: Any) -> Any:
            async with around(rpc, context):
                if refuses and type(request) is _Malformed:
                    raise InvalidInput("request", f"cannot be decoded: {request.message}")
                async for response in behavior(request, context):
                    yield response

        wrapped = generate if inspect.isasyncgenfunction(behavior) else call
        return getattr(grpc, f"{name}_rpc_method_handler")(
            wrapped,
            request_deserializer=decode,
            response_serializer=handler.response_serializer,
        )


def _travelling_bytes(text: str) -> int:
    """Length of a text as gRPC sends it: percent-encoded, but for printable ASCII."""
    if text.isascii() and text.isprintable():
        return len(text) + 2 * text.count("%")
    encoded = text.encode("utf-8", "replace")
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in encoded)


def _cut(text: str) -> str:
    """A text of at most ``_MOST_DETAILS`` bytes as they travel; an ellipsis tells of the rest."""
    if len(text) <= _MOST_DETAILS and _travelling_bytes(text) <= _MOST_DETAILS:
        return text
    left = _MOST_DETAILS - _travelling_bytes(_ELLIPSIS)
    for end, character in enumerate(text):
        left -= _travelling_bytes(character)
        if left < 0:
            return text[:end] + _ELLIPSIS
    return text


class _Guard(AbstractAsyncContextManager[None]):
    """Turns an exception that leaves the call into a status."""

    def __init__(self, rpc: Rpc, context: Any) -> None:
        self._rpc = rpc
        self._context = context

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None or not isinstance(error, Exception):
            return  # asyncio.CancelledError is no Exception
        if isinstance(error, (grpc.aio.AbortError, grpc.aio.InternalError, grpc.aio.UsageError)):
            return  # answered already, or the peer is gone
        if isinstance(error, DecodeError):
            error = InvalidInput("request", f"cannot be decoded: {error}")
        if not isinstance(error, MachError):
            _logger.error("%s.%s failed", self._rpc.service, self._rpc.method, exc_info=error)
            await self._context.abort(grpc.StatusCode.INTERNAL, "the server failed; see its log")
        trailing: tuple[tuple[str, str], ...] = ()  # what was set before is sent
        if isinstance(error, Overloaded):
            before = self._context.trailing_metadata() or ()
            trailing = (*before, (RETRY_PUSHBACK, str(error.retry_after_ms)))
        await self._context.abort(status_of(error), _cut(str(error)), trailing)


class ErrorInterceptor(WrappingInterceptor):
    """Answers a :class:`MachError` with its status and message, anything else with INTERNAL.

    What was not foreseen is logged with its traceback; the caller learns only that it failed.
    A request that is not the message it should be is INVALID_ARGUMENT.
    """

    refuses_malformed = True

    def around(self, rpc: Rpc, context: Any) -> AbstractAsyncContextManager[None]:
        """See the class."""
        return _Guard(rpc, context)


def code_of(context: Any, error: BaseException | None) -> str:
    """The name of the status that a call ends with, seen from outside :class:`ErrorInterceptor`."""
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        remaining = context.time_remaining()
        expired = remaining is not None and remaining <= 0
        return "DEADLINE_EXCEEDED" if expired else "CANCELLED"
    if error is None or isinstance(error, grpc.aio.AbortError):
        return _CODE_NAMES.get(context.code() or 0, "UNKNOWN")
    return "UNKNOWN"


class _Timer(AbstractAsyncContextManager[None]):
    """Counts and times one call."""

    def __init__(self, metrics: ServerMetrics, rpc: Rpc, context: Any) -> None:
        self._metrics = metrics
        self._rpc = rpc
        self._context = context

    async def __aenter__(self) -> None:
        self._start = time.perf_counter()
        self._metrics.started(self._rpc)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        count_call()
        code = code_of(self._context, error)
        self._metrics.handled(self._rpc, code, time.perf_counter() - self._start)


class MetricsInterceptor(WrappingInterceptor):
    """Counts and times calls; put it outside :class:`ErrorInterceptor`.

    It counts them by token too, at their end: only then is it known whether one was let through.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        super().__init__()
        self._metrics = metrics

    def around(self, rpc: Rpc, context: Any) -> AbstractAsyncContextManager[None]:
        """See the class."""
        return _Timer(self._metrics, rpc, context)

"""Refuses calls without a token before their request is read."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import grpc

from mach.errors import MachError, Unauthenticated
from mach.serving.guard import Caller, TokenGuard, caller_of_call
from mach.tokens import Scope

__all__ = ["TokenInterceptor"]

_refusal: ContextVar[MachError] = ContextVar("refusal")


class _Method(NamedTuple):
    """How a method is guarded."""

    original: Any
    is_open: bool
    scope: Scope | None
    admitted: Any
    """What handles a call that was let in."""
    refused: Any
    """What answers one that was not."""


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls with a token through; put it inside the error interceptor.

    A stream goes on while its token is valid: :meth:`end_streams` ends the others.
    """

    def __init__(
        self, guard: TokenGuard, *, open_services: Collection[str], scopes: dict[str, Scope]
    ) -> None:
        """Guard all services but some.

        Args:
            guard: knows the tokens.
            open_services: full names of services that need no token.
            scopes: what a service needs, by its full name; any token for one not named.
        """
        self._guard = guard
        self._open = frozenset(open_services)
        self._scopes = dict(scopes)
        self._methods: dict[int, _Method] = {}
        self._streams: dict[asyncio.Task[Any], tuple[Caller, Any]] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Called by gRPC for each call, before its request is parsed."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = self._methods.get(id(handler))
        if method is None:
            method = self._prepare(handler_call_details.method, handler)
            self._methods[id(handler)] = method  # keeps the handler: no other gets its id
        if method.is_open:
            return handler
        try:
            caller = self._guard.admit(handler_call_details.invocation_metadata, method.scope)
        except MachError as error:
            _refusal.set(error)
            return method.refused
        caller_of_call.set(caller)
        return method.admitted

    def _prepare(self, path: str, handler: Any) -> _Method:
        service = path.lstrip("/").rpartition("/")[0]
        kind = f"{'stream' if handler.request_streaming else 'unary'}_" + (
            "stream" if handler.response_streaming else "unary"
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        # Without a decoder: nothing of what a stranger sends is parsed.
        refused = make(_refuse, None, handler.response_serializer)
        admitted = handler
        if handler.request_streaming or handler.response_streaming:
            admitted = make(
                self._watched(getattr(handler, kind)),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return _Method(handler, service in self._open, self._scopes.get(service), admitted, refused)

    def _watched(self, behavior: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def call(request: Any, context: Any) -> Any:
            with self._registered(context):
                return await behavior(request, context)

        async def generate(request: Any, context: Any) -> Any:
            with self._registered(context):
                async for response in behavior(request, context):
                    yield response

        return generate if inspect.isasyncgenfunction(behavior) else call

    @contextmanager
    def _registered(self, context: Any) -> Iterator[None]:
        task, caller = asyncio.current_task(), caller_of_call.get()
        if task is None or caller is None:
            raise Unauthenticated("authorization: no bearer token was sent")
        self._streams[task] = (caller, context)
        try:
            yield
        finally:
            self._streams.pop(task, None)

    async def end_streams(self) -> None:
        """End streams whose token was revoked or has expired, with UNAUTHENTICATED."""
        for task, (caller, context) in list(self._streams.items()):
            if self._guard.still_valid(caller):
                continue
            self._streams.pop(task, None)
            with suppress(grpc.aio.AbortError, grpc.aio.UsageError, grpc.aio.InternalError):
                await context.abort(
                    grpc.StatusCode.UNAUTHENTICATED,
                    f"authorization: the token {caller.token.name} was revoked or has expired",
                )
            task.cancel()


async def _refuse(request: Any, context: Any) -> Any:
    raise _refusal.get()

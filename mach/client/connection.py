"""The channel that calls go over, and its exchange when certificate files change."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import grpc

from mach.direct import DIRECT, is_this_machine
from mach.errors import InvalidInput, MachError, Unavailable
from mach.tls import ClientTls, Tls
from mach.v1 import search_pb2_grpc

__all__ = ["Connection", "OpenChannel", "TokenSource", "token_metadata"]

#: A token, or what gives the one to use now.
TokenSource = str | Callable[[], str]

_CHECK_SECONDS = 5.0
_logger = logging.getLogger(__name__)

C = TypeVar("C")


class OpenChannel(Generic[C]):
    """A channel and the number of calls on it; a context that gives the stub and ends one call."""

    def __init__(self, channel: C, close: Callable[[C], None]) -> None:
        self.channel = channel
        self.stub: Any = search_pb2_grpc.SearchServiceStub(cast("grpc.Channel", channel))
        self._close = close
        self._lock = threading.Lock()
        self._calls = 0
        self._retired = False
        self.ended = False  # whether its connection was closed

    def begin(self) -> bool:
        """Count a call that begins; False where the channel is on its way out."""
        with self._lock:
            self._calls += not self._retired
            return not self._retired

    def __enter__(self) -> Any:
        return self.stub

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._calls -= 1
            unused = self._retired and not self._calls
        if unused:
            self._close(self.channel)
        if self.ended and error is not None and _is_of_closing(error):
            raise _closed() from None

    def retire(self) -> None:
        """Close it when the last call on it has ended."""
        with self._lock:
            self._retired = True
            unused = not self._calls
        if unused:
            self._close(self.channel)


class Connection(ABC, Generic[C]):
    """Opens channels and says which one is in use.

    When the certificate files have changed, another channel is opened beside the one in use and
    takes its place once it is connected. Calls on their way keep theirs.
    """

    def __init__(
        self, address: str, tls: Tls | grpc.ChannelCredentials | None, options: list[Any]
    ) -> None:
        """Read the certificates; a channel is opened by the first call.

        Args:
            address: a gRPC target.
            tls: certificates, or credentials made elsewhere; None for plain text.
            options: of the channels.

        Raises:
            ConfigError: if a file cannot be used.
        """
        self._address = address
        if is_this_machine(address):
            options = [*options, *DIRECT]
        self._options = options
        self._credentials = tls if isinstance(tls, grpc.ChannelCredentials) else None
        self._tls: ClientTls | None = None
        if isinstance(tls, Tls):
            self._tls = ClientTls(tls)
            self._options = [*options, *self._tls.options]
        elif tls is not None and self._credentials is None:
            raise InvalidInput("tls", f"must be a Tls, got {type(tls).__name__}")
        self._lock = threading.Lock()
        self._check_at = time.monotonic() + _CHECK_SECONDS
        self._next: OpenChannel[C] | None = None
        self._closed = False
        self.current: OpenChannel[C] | None = None

    @abstractmethod
    def _make(self, address: str, credentials: grpc.ChannelCredentials | None) -> C:
        """A channel; plain text where there are no credentials."""

    @abstractmethod
    def _close(self, channel: C) -> None:
        """Close a channel."""

    @abstractmethod
    def _when_connected(self, channel: C, then: Callable[[], None]) -> None:
        """Connect it and call ``then`` once that is done."""

    def _open(self) -> OpenChannel[C]:
        credentials = self._credentials if self._tls is None else self._tls.credentials()
        return OpenChannel(self._make(self._address, credentials), self._close)

    def use(self) -> OpenChannel[C]:
        """The channel for a call that begins now; leave it as a context when the call ends.

        Raises:
            Unavailable: if the connection is closed; so does the context of a call in flight then.
        """
        if self._closed:
            raise _closed()
        if self.current is None:
            self._open_first()
        if self._tls is not None and time.monotonic() >= self._check_at:
            self._look()
        while (opened := self.current) is None or not opened.begin():
            pass  # exchanged just now
        return opened

    def _open_first(self) -> None:
        with self._lock:
            if self._closed:
                raise _closed()
            if self.current is None:
                self.current = self._open()

    def _look(self) -> None:
        assert self._tls is not None
        with self._lock:
            if time.monotonic() < self._check_at or self._closed:
                return  # another thread was first
            self._check_at = time.monotonic() + _CHECK_SECONDS
            try:
                changed = self._tls.files.check()
            except MachError as error:
                _logger.error("changed certificates are not used, those before stay: %s", error)
                return
            if not changed:
                return
            fresh, overtaken = self._open(), self._next
            self._next = fresh
        if overtaken is not None:
            overtaken.retire()
        self._when_connected(fresh.channel, lambda: self._take(fresh))

    def _take(self, fresh: OpenChannel[C]) -> None:
        with self._lock:
            if self._next is not fresh or self._closed:
                return
            old, self.current, self._next = self.current, fresh, None
        if old is not None:
            old.retire()

    def _open_channels(self) -> list[C]:
        """Of a connection that ends: no further one is opened."""
        with self._lock:
            self._closed = True
            opened = [each for each in (self.current, self._next) if each is not None]
            for each in opened:
                each.ended = True
            return [each.channel for each in opened]


def _closed() -> Unavailable:
    return Unavailable("the client is closed")


def _is_of_closing(error: BaseException) -> bool:
    """Whether a call that fails so may do because its channel was closed."""
    if isinstance(error, asyncio.CancelledError):  # or its caller was cancelled
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(error, grpc.RpcError | grpc.aio.UsageError | ValueError)


def token_metadata(token: TokenSource | None) -> Callable[[], tuple[tuple[str, str], ...] | None]:
    """What gives a call's metadata.

    Args:
        token: a bearer token, or what gives the one to use now; None for none.

    Raises:
        InvalidInput: if a token is not one; the message does not show it.
    """
    if token is None:
        return lambda: None
    if callable(token):
        return lambda: (_authorization(token()),)
    metadata = (_authorization(token),)
    return lambda: metadata


def _authorization(token: str) -> tuple[str, str]:
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidInput("token", "is not a bearer token")
    if not token:
        raise InvalidInput("token", "is empty")
    return ("authorization", f"Bearer {token}")

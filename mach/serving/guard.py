"""Whose call it is and whether it may be made: tokens, scopes, rates. Knows nothing of gRPC."""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter

from mach.errors import Overloaded, PermissionDenied, Unauthenticated
from mach.reloading import Reloaded
from mach.tokens import Scope, Token, TokenFile, hash_token, id_of, read_tokens

__all__ = ["Caller", "TokenBucket", "TokenGuard", "charge", "count_call"]

_NOBODY = bytes(32)


class TokenBucket:
    """A rate with bursts: it fills at ``rate`` a second up to ``burst``, and calls empty it.

    What costs more than a burst is let through when it is full, and leaves it in debt, so that
    the mean rate holds and no batch is refused for ever.
    """

    __slots__ = ("_at", "_level", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._level = burst
        self._at = now

    def take(self, cost: float, now: float, *, paid: float = 0.0) -> float:
        """Pay ``cost``; 0 where it was paid, else the seconds until it can be.

        What was ``paid`` of it before counts, and comes back where it cannot be: else the bucket,
        which is never full again once something was paid, would let no burst through.
        """
        self._level = min(self.burst, self._level + paid + (now - self._at) * self.rate)
        self._at = now
        needed = min(cost, self.burst)
        if self._level >= needed:
            self._level -= cost
            return 0.0
        return (needed - self._level) / self.rate


class Caller:
    """A token in use."""

    __slots__ = ("_bucket", "_clock", "_ok", "_shed", "expires", "hash", "token")

    def __init__(self, token: Token, calls: Counter, clock: Callable[[], float]) -> None:
        self.token = token
        self.hash = bytes.fromhex(token.sha256)
        self.expires = math.inf if token.expires is None else token.expires.timestamp()
        self._clock = clock
        self._bucket = None
        if token.rate is not None:
            burst = float(token.burst or max(1.0, token.rate))
            self._bucket = TokenBucket(token.rate, burst, clock())
        # labels() takes longer than inc(): look each child up once.
        self._ok = calls.labels(token.name, "ok")
        self._shed = calls.labels(token.name, "rate_limited")

    def admit(self) -> None:
        """Pay for a call's first query; :func:`count_call` counts the call when it is over.

        Raises:
            Overloaded: if the rate is used up.
        """
        self._pay(1, paid=0)
        _uncounted.set(self)

    def charge(self, queries: int) -> None:
        """Pay for all queries of a call of which the first is paid; see :func:`charge`."""
        self._pay(queries, paid=1)

    def count(self) -> None:
        """Count a call that was not refused for its rate."""
        self._ok.inc()

    def _pay(self, queries: int, paid: int) -> None:
        if self._bucket is None:
            return
        seconds = self._bucket.take(queries, self._clock(), paid=paid)
        if seconds:
            _uncounted.set(None)
            self._shed.inc()
            raise Overloaded(
                f"the token {self.token.name} allows {self.token.rate:g} queries a second",
                retry_after_ms=math.ceil(seconds * 1000),
            )


#: Whose call this is; None where no tokens are asked for.
caller_of_call: ContextVar[Caller | None] = ContextVar("caller", default=None)
#: Whose call this is while it was let in and is not counted: a batch may yet be refused.
_uncounted: ContextVar[Caller | None] = ContextVar("uncounted", default=None)


def charge(queries: int) -> None:
    """Pay for the queries of a call, where its token has a rate.

    The first was paid when the call was let in. It is paid back where the call is refused.

    Args:
        queries: all that the call holds.

    Raises:
        Overloaded: if the rate is used up.
    """
    caller = caller_of_call.get()
    if caller is not None and queries > 1:
        caller.charge(queries)


def count_call() -> None:
    """Count this call as one that was let in, unless it was counted as another; at its end."""
    caller = _uncounted.get()
    if caller is not None:
        _uncounted.set(None)
        caller.count()


class TokenGuard:
    """Knows the tokens of a file, as it is now.

    Attributes:
        files: the file; call :meth:`reloaded` when it has another value.
    """

    def __init__(
        self,
        path: Path,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Read the file.

        Args:
            path: see :mod:`mach.tokens`.
            registry: where calls are counted.
            clock: for rates.
            wall_clock: for expiry.

        Raises:
            ConfigError: if it cannot be used.
        """
        self.files: Reloaded[TokenFile] = Reloaded("tokens", [path], lambda: read_tokens(path))
        self._clock = clock
        self._wall_clock = wall_clock
        self._calls = new_calls_counter(registry)
        self._refused = self._calls.labels("", "unauthenticated")
        self._callers: dict[str, Caller] = {}
        self.reloaded()

    def reloaded(self) -> None:
        """Take up the file's value; tokens that did not change keep the state of their rates."""
        old = self._callers
        self._callers = {}
        for token in self.files.value.tokens:
            kept = old.get(token.id)
            if kept is None or kept.token != token:
                kept = Caller(token, self._calls, self._clock)
            self._callers[token.id] = kept

    def admit(self, metadata: Iterable[tuple[str, str | bytes]], scope: Scope | None) -> Caller:
        """Let a call in, or refuse it.

        Args:
            metadata: the call's; ``authorization: Bearer TOKEN`` is looked for.
            scope: what the method needs; None for any token.

        Raises:
            Unauthenticated: without a token, or with one that is not known or has expired.
            PermissionDenied: if the token does not allow the method.
            Overloaded: if the token's rate is used up.
        """
        try:
            caller = self._identify(metadata)
        except Unauthenticated:
            self._refused.inc()
            raise
        token = caller.token
        if scope is not None and scope not in token.scopes:
            self._calls.labels(token.name, "denied").inc()
            raise PermissionDenied(
                f"the token {token.name} is for {' and '.join(token.scopes)}, not for {scope}"
            )
        caller.admit()
        return caller

    def _identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        value = next((value for name, value in metadata if name == "authorization"), None)
        if value is None:
            raise Unauthenticated("authorization: no bearer token was sent")
        scheme, _, credential = value.partition(" ") if isinstance(value, str) else ("", "", "")
        number = id_of(credential) if scheme.lower() == "bearer" else None
        if number is None:
            raise Unauthenticated("authorization: is not a bearer token of this fleet")
        caller = self._callers.get(number)
        # The id is no secret; the comparison tells nothing of how much of the rest was right.
        known = hmac.compare_digest(
            hash_token(credential), _NOBODY if caller is None else caller.hash
        )
        if caller is None or not known:
            raise Unauthenticated("authorization: the token is not known here, or was revoked")
        if self._wall_clock() >= caller.expires:
            raise Unauthenticated(f"authorization: the token {caller.token.name} has expired")
        return caller

    def still_valid(self, caller: Caller) -> bool:
        """Whether what was let in would be let in now, its rate apart."""
        current = self._callers.get(caller.token.id)
        return (
            current is not None
            and current.hash == caller.hash
            and set(caller.token.scopes) <= set(current.token.scopes)
            and self._wall_clock() < current.expires
        )


def new_calls_counter(registry: CollectorRegistry) -> Counter:
    """The counter of calls by token."""
    return Counter(
        "mach_auth_calls",
        "Calls by token name and outcome: ok, rate_limited, denied, or unauthenticated.",
        ("token", "outcome"),
        registry=registry,
    )

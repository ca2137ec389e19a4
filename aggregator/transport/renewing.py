"""A connection that is made anew when the certificates it was made with are replaced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aggregator.transport.base import (
    Answer,
    Done,
    Payload,
    ShardDescription,
    ShardTransport,
    Withdraw,
)
from mach.errors import MachError
from mach.tracing import Headers

__all__ = ["RenewingTransport"]

_log = logging.getLogger(__name__)

_DRAIN_SECONDS = 5.0
_POLL_SECONDS = 0.02


class _Counted:
    """A transport and how many of its predictions are not answered."""

    def __init__(self, inner: ShardTransport, made_with: object) -> None:
        self.inner = inner
        self.made_with = made_with
        self.calls = 0

    def predict(
        self,
        payload: Payload,
        repetitions: tuple[int, ...],
        seconds: float,
        done: Done,
        trace: Headers = (),
    ) -> Withdraw:
        self.calls += 1
        open_ = True

        def ended() -> None:
            nonlocal open_
            if open_:
                open_ = False
                self.calls -= 1

        def answered(answer: Answer) -> None:
            ended()
            done(answer)

        withdraw = self.inner.predict(payload, repetitions, seconds, answered, trace)

        def withdrawn() -> None:
            ended()
            withdraw()

        return withdrawn

    async def drain_and_close(self) -> None:
        try:
            deadline = asyncio.get_running_loop().time() + _DRAIN_SECONDS
            while self.calls and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            await self.inner.close()


class RenewingTransport:
    """Goes on with the connection it has until one made with the new certificates answers.

    That is tried each time the shard is asked for its state. Predictions on their way keep the
    connection they began on.
    """

    def __init__(self, connect: Callable[[], ShardTransport], made_with: Callable[[], object]):
        """Connect.

        Args:
            connect: makes a connection with the certificates as they are now.
            made_with: the certificates as they are now, to compare with ``is``.
        """
        self._connect = connect
        self._made_with = made_with
        self._closing: set[asyncio.Task[None]] = set()
        self._failed_with: object = None
        self.on_broken: Callable[[str], None] = lambda _: None
        self._current = self._open()
        self._take(self._current)
        self.address = self._current.inner.address

    def _open(self) -> _Counted:
        made_with = self._made_with()
        return _Counted(self._connect(), made_with)

    def _take(self, fresh: _Counted) -> None:
        def broken(why: str) -> None:
            if self._current is fresh:
                self.on_broken(why)

        fresh.inner.on_broken = broken
        self._current = fresh

    async def describe(self, seconds: float) -> ShardDescription:
        """See :class:`ShardTransport`."""
        if self._current.made_with is not self._made_with():
            fresh = self._open()
            try:
                description = await fresh.inner.describe(seconds)
            except MachError as error:
                await fresh.inner.close()
                if self._failed_with is not fresh.made_with:
                    self._failed_with = fresh.made_with
                    _log.error(
                        "shard %s does not answer with the new certificates, the connection "
                        "before is kept: %s",
                        self.address,
                        error,
                    )
            except BaseException:
                await fresh.inner.close()
                raise
            else:
                old = self._current
                self._take(fresh)
                self._retire(old)
                return description
        return await self._current.inner.describe(seconds)

    def _retire(self, old: _Counted) -> None:
        task = asyncio.create_task(old.drain_and_close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def predict(
        self,
        payload: Payload,
        repetitions: tuple[int, ...],
        seconds: float,
        done: Done,
        trace: Headers = (),
    ) -> Withdraw:
        """See :class:`ShardTransport`."""
        return self._current.predict(payload, repetitions, seconds, done, trace)

    async def close(self) -> None:
        """See :class:`ShardTransport`."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._current.inner.close()

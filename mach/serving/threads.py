"""The threads of a server's event loop, which do not hold up its end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ParamSpec, TypeVar

__all__ = ["Threads"]

_GRACE_SECONDS = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """An event loop's default executor: what it runs when the loop ends is not waited for.

    A thread cannot be cancelled. One that loads a bundle, and compiles for it, would keep a
    process that was told to stop for minutes after its drain.
    """

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="loop")
        self._unfinished: set[Future[Any]] = set()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See :class:`ThreadPoolExecutor`."""
        future = super().submit(fn, *args, **kwargs)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more and drop what no thread has begun; waits for nothing."""
        super().shutdown(wait=False, cancel_futures=True)

    def leave(self, code: int) -> int:
        """The exit code, for the caller to end the process with.

        While a thread is still at work the process ends here: the interpreter would wait for it.
        """
        if wait(set(self._unfinished), _GRACE_SECONDS).not_done:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code

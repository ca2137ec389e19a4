"""Whether a call that the fleet refused is made again.

gRPC itself repeats calls that find no server. It would also wait out a refusal's push-back, however
long, and let the deadline pass meanwhile: refusals are therefore repeated here.
"""

from __future__ import annotations

import random
import threading
import time

import grpc

from mach.client.calls import MOST_TOKENS, TOKENS_EARNED, read_error
from mach.errors import Overloaded

__all__ = ["Attempts", "Retries"]


class Retries:
    """Shared by the calls of a client: few are repeated where most are refused."""

    def __init__(self, max_attempts: int) -> None:
        """Allow each call so many attempts."""
        self.max_attempts = max_attempts
        self._lock = threading.Lock()
        self._tokens: float = MOST_TOKENS

    def answered(self) -> None:
        """An attempt was answered."""
        if self._tokens < MOST_TOKENS:
            with self._lock:
                self._tokens = min(MOST_TOKENS, self._tokens + TOKENS_EARNED)

    def refused(self) -> bool:
        """An attempt was refused; whether another may be made."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > MOST_TOKENS / 2


class Attempts:
    """Those of one call, within its time."""

    def __init__(self, retries: Retries, seconds: float) -> None:
        self._retries = retries
        self._left = retries.max_attempts
        self._deadline = time.monotonic() + seconds

    @property
    def seconds(self) -> float:
        """What an attempt that begins now may take."""
        return max(0.001, self._deadline - time.monotonic())

    def answered(self) -> None:
        """The last attempt was answered."""
        self._retries.answered()

    def pause(self, error: grpc.RpcError) -> float:
        """Seconds to wait before another attempt, after one failed.

        The push-back is kept to, and a little more, so that those refused together do not come
        back together. What would be too late is not waited for.

        Raises:
            MachError: what the failure is, where there shall be no other attempt.
        """
        found = read_error(error)
        self._left -= 1
        if isinstance(found, Overloaded) and self._retries.refused() and self._left:
            pause = found.retry_after_ms * 1e-3 * random.uniform(1.0, 1.25)
            if pause < self._deadline - time.monotonic():
                return pause
        raise found from None

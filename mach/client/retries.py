"""Whether a call that the fleet refused is made again.

gRPC itself repeats calls that find no server. It would also wait out a refusal's push-back, however
long, and let the deadline pass meanwhile: refusals are therefore repeated here.
"""

from __future__ import annotations

import random
import threading
import time

from mach.errors import MachError, Overloaded

__all__ = ["Attempts", "Retries"]

_FULL, _EARNED = 10.0, 0.2


class Retries:
    """Shared by the calls of a client.

    Few refusals are followed by another attempt where most calls are refused: each takes a token,
    each answer gives a fifth of one back, and below half of ten no call is repeated (as gRPC's own
    throttling of retries does, gRFC A6).
    """

    def __init__(self, max_attempts: int) -> None:
        """Allow each call so many attempts."""
        self.max_attempts = max_attempts
        self._lock = threading.Lock()
        self._tokens = _FULL

    def answered(self) -> None:
        """An attempt was answered."""
        if self._tokens < _FULL:
            with self._lock:
                self._tokens = min(_FULL, self._tokens + _EARNED)

    def refused(self) -> bool:
        """An attempt was refused; whether another may be made."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._tokens > _FULL / 2


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

    def pause(self, error: MachError) -> float | None:
        """Seconds to wait before another attempt; None if there shall be none.

        The push-back is kept to, and a little more, so that those refused together do not come
        back together. What would be too late is not waited for.
        """
        self._left -= 1
        if not isinstance(error, Overloaded):
            return None
        if not self._retries.refused() or not self._left:
            return None
        pause = error.retry_after_ms * 1e-3 * random.uniform(1.0, 1.25)
        return pause if pause < self._deadline - time.monotonic() else None

"""When a slow message is sent to another replica as well, and how often that may happen."""

from __future__ import annotations

import numpy as np

from aggregator.policy import FanOutPolicy

__all__ = ["Hedging"]

_WINDOW = 512
_REFRESH = 32
_LARGEST_CREDIT = 16.0
_FIRST_CREDIT = 4.0


class Hedging:
    """The delay is a quantile of recent latencies; the budget a share of the messages sent."""

    def __init__(self, policy: FanOutPolicy) -> None:
        self._policy = policy
        self._latencies = np.zeros(_WINDOW)
        self._count = 0
        self._credit = _FIRST_CREDIT if policy.hedge_fraction else 0.0
        #: Seconds after which a message is hedged; infinite until enough have been seen.
        self.delay = float("inf")
        #: Seconds after which a message is late, whatever became of others.
        self.late = policy.straggler_seconds * policy.straggler_factor

    def sent(self, messages: int) -> None:
        """Messages were sent: they earn the right to hedge a few."""
        credit = self._credit + messages * self._policy.hedge_fraction
        self._credit = min(credit, _LARGEST_CREDIT)

    def answered(self, seconds: float) -> None:
        """A message was answered."""
        self._latencies[self._count % _WINDOW] = seconds
        self._count += 1
        if self._count % _REFRESH == 0:
            seen = self._latencies[: min(self._count, _WINDOW)]
            policy = self._policy
            quantile = float(np.quantile(seen, policy.hedge_quantile))
            self.delay = max(policy.hedge_floor_seconds, quantile)
            self.late = max(policy.straggler_seconds, policy.straggler_factor * quantile)

    def spend(self, messages: int) -> bool:
        """Whether so many more messages may be sent; if so, they are paid for."""
        if self._credit < messages:
            return False
        self._credit -= messages
        return True

"""How long queries wait for company before they are sent together."""

from __future__ import annotations

from aggregator.policy import FanOutPolicy

__all__ = ["Gathering"]

#: Share of a pause by which it may end late.
_LATE = 0.5


class Gathering:
    """A message costs a shard and the aggregator about as much for one query as for ten.

    A query that comes alone is sent at once. Where queries come together, those that wait are
    sent when none has come for a moment, a share of the time that a batch takes of late. On a busy
    machine answers and new calls take turns: who sent the first call that came, and left the
    others in the sockets, would pay for a message to every shard, again and again.

    That none came tells nothing while the event loop took none up: because it was busy with the
    answers of the batch before, or had to wait for a CPU itself. So a moment begins anew when those
    may be sent that had to wait for that batch, and when it ends late.

    Times are loop times.
    """

    def __init__(self, policy: FanOutPolicy) -> None:
        self._policy = policy
        self._last_rows = 1
        self._first = 0.0
        self._latest = 0.0
        self._opened = 0.0
        self._pause = 0.0
        self._waits = False

    def opened(self, now: float) -> None:
        """Whatever waits may be sent from now on."""
        self._opened = now

    def woke(self, now: float, due: float) -> None:
        """It is looked at now what was :meth:`due` before."""
        if now - due > self._pause * _LATE:
            self._latest = now

    def arrived(self, now: float) -> None:
        """A query began to wait."""
        if not self._waits:
            self._waits, self._first = True, now
        self._latest = now

    def sent(self, rows: int) -> None:
        """Those that waited, or as many as fit, were sent."""
        self._last_rows = rows
        self._waits = False

    def due(self, rows: int, *, others: bool, batch_seconds: float) -> float:
        """When ``rows`` queries that wait should be sent; in the past for at once.

        Args:
            rows: how many wait.
            others: whether queries sent before are not answered yet.
            batch_seconds: how long a batch takes of late.
        """
        alone = rows == 1 and self._last_rows == 1 and not others
        if alone or rows >= self._policy.max_rows or not self._waits:
            return 0.0
        share, most = self._policy.gather_share, self._policy.gather_most_seconds
        self._pause = min(batch_seconds * share, most)
        latest = max(self._latest, self._opened)
        return min(latest + self._pause, max(self._first, self._opened) + batch_seconds)

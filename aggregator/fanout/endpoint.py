"""One shard address: its connection, its state, and how it has behaved lately."""

from __future__ import annotations

import asyncio
from enum import Enum

from aggregator.coverage import MissingReason
from aggregator.served import Expected
from aggregator.transport import ShardTransport

__all__ = ["Endpoint", "State"]

_SMOOTHING = 0.25
_HALF_LIFE_SECONDS = 1.0
_LEAST_LATENCY = 1e-4
#: Three lapses in a row, or somewhat more than every second message, are too many.
_TOO_MANY_LAPSES = 0.55


class State(Enum):
    """What may be sent to an endpoint."""

    CONNECTING = "connecting"  #: not answered yet; nothing is sent
    READY = "ready"  #: in use, for the bundle versions it holds
    EJECTED = "ejected"  #: reachable but late or failing; used only where nothing else would do
    SILENT = "silent"  #: connected but does not say how it is; used only where nothing else would
    UNREACHABLE = "unreachable"  #: cannot be connected to; nothing is sent


class Endpoint:
    """A shard address and what is known of it.

    Attributes:
        address: HOST:PORT.
        transport: the connection.
        state: what may be sent to it.
        message: why it is not ready, in one sentence; empty where it is.
        reason: how it lapsed last.
        repetitions: what it said it holds, increasing.
        bundle_versions: those it said it answers from, the active one first.
        shape: numbers of buckets and features of its active bundle.
        max_batch_size: the most queries it accepts in a message.
        calls: messages sent and not answered.
        latency: smoothed seconds a message takes.
        asked: when the last message was sent to it, loop time.
        heard: when it last answered a prediction, loop time.
        ejections: how often in a row it was ejected.
        ejected_until: when it is tried again, loop time.
        wake: set to have it asked for its state now.
    """

    __slots__ = (
        "_lapses",
        "address",
        "asked",
        "bundle_versions",
        "calls",
        "ejected_until",
        "ejections",
        "heard",
        "latency",
        "max_batch_size",
        "message",
        "reason",
        "repetitions",
        "shape",
        "state",
        "transport",
        "wake",
    )

    def __init__(self, address: str, transport: ShardTransport) -> None:
        self.address = address
        self.transport = transport
        self.state = State.CONNECTING
        self.message = "not connected yet"
        self.reason = MissingReason.UNAVAILABLE
        self.repetitions: tuple[int, ...] = ()
        self.bundle_versions: tuple[str, ...] = ()
        self.shape = (0, 0)
        self.max_batch_size = 1
        self.calls = 0
        self.latency = 0.0
        self.asked = 0.0
        self.heard = 0.0
        self.ejections = 0
        self.ejected_until = 0.0
        self.wake = asyncio.Event()
        self._lapses = 0.0

    def misfit(self, expected: Expected) -> str:
        """Why it cannot answer for a bundle, in one sentence; empty where it can."""
        if expected.bundle_version not in self.bundle_versions:
            held = " and ".join(self.bundle_versions)
            return f"holds bundle version {held}, not {expected.bundle_version}"
        if self.bundle_versions[0] == expected.bundle_version and self.shape != (
            expected.num_buckets,
            expected.num_features,
        ):
            return "its numbers of buckets and features are not the bundle's"
        if self.repetitions[:1] >= (expected.num_repetitions,):
            return "holds no repetition of the bundle"
        return ""

    def load(self, now: float) -> float:
        """Expected seconds until another message would be answered; least is best.

        What is known of a latency fades while nothing is sent, or an endpoint that was slow
        once would never be tried again.
        """
        idle = 0.0 if self.calls else now - self.asked
        latency = self.latency * 0.5 ** (idle / _HALF_LIFE_SECONDS)
        return float((self.calls + 1) * max(latency, _LEAST_LATENCY))

    def answered(self, seconds: float, now: float) -> None:
        """A message was answered, and well."""
        self.latency += (seconds - self.latency) * (_SMOOTHING if self.latency else 1.0)
        self.heard = now
        self._lapses *= 1 - _SMOOTHING
        if self.ejections and self._lapses < 0.1:
            self.ejections = 0

    def lapsed(self, seconds: float) -> bool:
        """A message was late, failed, or was answered with nonsense.

        Returns:
            Whether there were too many of late, so that it should be ejected.
        """
        if seconds > self.latency:  # so that a replica that is quicker is preferred
            self.latency += (seconds - self.latency) * _SMOOTHING
        self._lapses += (1 - self._lapses) * _SMOOTHING
        return self._lapses > _TOO_MANY_LAPSES

    def eject(self, now: float, seconds: float, longest: float) -> None:
        """Leave it out for a while, longer each time."""
        self.ejected_until = now + min(seconds * 2**self.ejections, longest)
        self.ejections += 1

    def ask_again(self) -> None:
        """Have it asked for its state now, however lately it was heard of."""
        self.heard = float("-inf")
        self.wake.set()

    def readmit(self) -> None:
        """Try it again: the next lapse ejects it at once."""
        self._lapses = _TOO_MANY_LAPSES if self.ejections else 0.0

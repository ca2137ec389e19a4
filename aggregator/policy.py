"""How the aggregator trades time, coverage and load; each number says what it costs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FanOutPolicy", "Limits"]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    max_k: int = 1000
    """Largest k."""
    max_batch_size: int = 256
    """Most queries in a call."""
    max_text_length: int = 4096
    """Most characters in a query's text."""
    max_nonzeros: int = 1024
    """Most features a query may have."""
    max_product_ids: int = 10_000
    """Most product ids in an allowed or blocked list."""


@dataclass(frozen=True)
class FanOutPolicy:
    """How queries are sent and how long answers are waited for. Times are in seconds."""

    minimum_repetitions: int | None = None
    """Repetitions an answer needs where a request does not say; half of the bundle's, rounded
    up, where not given."""
    encoding: int = 3
    """How shards write log-probabilities (``mach.v1.Encoding``)."""
    max_rows: int = 64
    """Most queries sent in one message. Those that wait are sent together, so this bounds
    how long a shard computes before the next message's turn."""
    max_message_bytes: int = 64 << 20
    """Largest answer that a shard can send. Fewer queries go into a message to one of whose
    answer they would be more: what is too large ends a stream, with all that waits on it."""
    max_in_flight: int = 1
    """Batches on their way at a time; queries that arrive meanwhile wait and form the next.
    A batch is on its way until nearly all shards have answered, so at one the next is sent while
    it is merged; more make the batches small, and every batch costs a message to each shard."""
    gather_share: float = 0.125
    """Queries that do not come alone are sent when none has come for this share of the time that
    a batch takes. 0 sends what there is."""
    gather_most_seconds: float = 0.02
    """Longest such pause."""
    inline_merge_seconds: float = 0.0005
    """A merge expected to take less is done on the event loop, which saves the cost of a change
    of threads; a longer one goes to a worker thread."""
    max_queue: int = 1024
    """Queries that may wait before new ones are refused."""
    max_queue_seconds: float = 0.25
    """Expected wait beyond which new queries are refused, even if their deadline is later."""
    straggler_seconds: float = 0.05
    """A repetition is never given up sooner than this after its message was sent."""
    straggler_factor: float = 4.0
    """A repetition is given up when it takes this many times as long as it took half of the
    others to answer, if the request's minimum is met: a shard that hangs must not decide
    how long everyone waits, and a score over the others is as unbiased."""
    hedge_fraction: float = 0.05
    """Share of the load that may be sent a second time, to another replica."""
    hedge_quantile: float = 0.95
    """A message is hedged when it takes longer than this share of the recent ones."""
    hedge_floor_seconds: float = 0.002
    """Nothing is hedged sooner than this."""
    max_calls: int = 16
    """Unanswered messages an endpoint may have; more are not sent to it."""
    probe_seconds: float = 1.0
    """How often an endpoint that is silent is asked for its state, and how long it may take
    to answer."""
    describe_seconds: float = 30.0
    """How often an endpoint that answers queries is asked what it holds."""
    eject_seconds: float = 1.0
    """How long an endpoint that is late or fails is left out; doubles each time."""
    max_eject_seconds: float = 30.0
    """Longest time it is left out before it is tried again."""
    resolve_seconds: float = 5.0
    """How often names written dns:///NAME:PORT are looked up again."""

    def minimum(self, num_repetitions: int) -> int:
        """Repetitions an answer needs, for a bundle of ``num_repetitions``."""
        return self.minimum_repetitions or (num_repetitions + 1) // 2

"""A shard without its transport: what a request may be, and the queue it goes to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from mach.errors import InvalidInput
from mach.features import SparseBatch
from mach.inference import LoadedBundle
from mach.serving.bundles import BundleHost
from mach.wire import largest_answer, rows_that_fit
from shard_server.batcher import Batcher, Job

__all__ = ["Limits", "ShardCore"]

#: Texts of fewer characters in sum are featurized on the event loop: a thread costs more.
_INLINE_CHARACTERS = 2000


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        max_batch_size: queries in a request.
        max_nonzeros: features of a query.
        max_text_characters: length of a query text.
        max_message_bytes: of an answer.
    """

    max_batch_size: int
    max_nonzeros: int
    max_text_characters: int
    max_message_bytes: int


class ShardCore:
    """Checks requests against the limits and the bundle they name, and queues them."""

    def __init__(self, limits: Limits, bundles: BundleHost[LoadedBundle], batcher: Batcher) -> None:
        self.limits = limits
        self.bundles = bundles
        self._batcher = batcher
        # The first text makes the featurizer import a compiler, which an aggregator's shard, sent
        # features alone, never needs.
        self._has_featurized = False

    def check(self, features: SparseBatch) -> None:
        """Refuse batches beyond the limits; the rest was checked on parsing.

        Raises:
            InvalidInput: if there are no or too many queries, or one has too many features.
        """
        self._check_count("features.splits", len(features))
        self._check_longest("features.splits", features)

    def _check_count(self, field: str, count: int) -> None:
        if not 1 <= count <= self.limits.max_batch_size:
            raise InvalidInput(
                field, f"needs 1 to {self.limits.max_batch_size} queries, got {count}"
            )

    def _check_longest(self, field: str, features: SparseBatch) -> None:
        if features.longest > self.limits.max_nonzeros:
            raise InvalidInput(
                field,
                f"a query has {features.longest} features, "
                f"at most {self.limits.max_nonzeros} are accepted",
            )

    def check_answer(self, rows: int, repetitions: int, num_buckets: int, encoding: int) -> None:
        """Refuse what could not be sent: on a stream it would end all that is on its way there.

        Args:
            rows: queries.
            repetitions: how many answer each.
            num_buckets: B.
            encoding: how they are written (``mach.v1.Encoding``).

        Raises:
            InvalidInput: if the answer would be too large.
        """
        size = largest_answer(rows, repetitions, num_buckets, encoding)
        if size > self.limits.max_message_bytes:
            raise InvalidInput(
                "repetitions",
                f"{repetitions} of {num_buckets} buckets for {rows} queries are {size} bytes, more "
                f"than the {self.limits.max_message_bytes} of --max-message-bytes",
            )

    def max_rows(self, loaded: LoadedBundle, encoding: int) -> int:
        """The most queries that all repetitions answer in a message, in an encoding."""
        fitting = rows_that_fit(
            self.limits.max_message_bytes, len(loaded.repetitions), loaded.num_buckets, encoding
        )
        return min(self.limits.max_batch_size, max(1, fitting))

    async def featurize(self, loaded: LoadedBundle, texts: Sequence[str]) -> SparseBatch:
        """Text to features; long ones, and the first, on a thread.

        Raises:
            InvalidInput: if there are no or too many texts, or one is empty or too long.
        """
        self._check_count("texts", len(texts))
        longest = self.limits.max_text_characters
        for i, text in enumerate(texts):
            if not 1 <= len(text) <= longest:
                raise InvalidInput(
                    f"texts[{i}]", f"must have 1 to {longest} characters, got {len(text)}"
                )
        if self._has_featurized and sum(map(len, texts)) <= _INLINE_CHARACTERS:
            features = loaded.featurizer.batch(texts)
        else:
            features = await asyncio.to_thread(loaded.featurizer.batch, texts)
            self._has_featurized = True
        self._check_longest("texts", features)
        return features

    def submit(self, job: Job) -> None:
        """Queue a job; see :meth:`Batcher.submit`."""
        self._batcher.submit(job)

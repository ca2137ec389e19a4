"""What a fleet must answer, worked out the plain way: every product scored, nothing pruned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mach.bundle import Bundle
from mach.inference import RepetitionSession
from mach.v1 import shard_pb2
from mach.wire import decode_rows, encode_rows


class Reference:
    """Scores products of a bundle one repetition after another, in float64."""

    def __init__(self, bundle: Bundle, encoding: int = shard_pb2.ENCODING_UINT8) -> None:
        self.bundle = bundle
        self.encoding = encoding
        self.table = bundle.hash.table()
        self.sessions = [
            RepetitionSession(bundle, r) for r in range(bundle.manifest.num_repetitions)
        ]

    def top(self, text: str, k: int, repetitions: Sequence[int]) -> tuple[list[str], list[float]]:
        """Product ids and scores; equal scores by id."""
        batch = self.bundle.featurizer.batch([text])
        if not len(batch.indices):
            return [], []
        sums = np.zeros(self.bundle.manifest.num_classes)
        for r in repetitions:
            rows = self.sessions[r].run(batch)
            sent = decode_rows(encode_rows(rows, self.encoding), self.encoding, *rows.shape)
            sums += self.bundle.merge_rule.transform(sent)[0][self.table[r]].astype(np.float64)
        order = np.lexsort((np.arange(len(sums)), -sums))[:k]
        scores = self.bundle.merge_rule.final(sums[order], len(repetitions))
        return self.bundle.catalog.product_ids(order), scores.tolist()

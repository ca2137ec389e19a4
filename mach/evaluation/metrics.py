"""Ranking metrics of extreme classification, by their standard definitions.

P@k divides by k and recall by the number of true products, also where fewer than k
products are true or where some were never seen in training; nDCG@k is that of Järvelin and
Kekäläinen (2002) with binary gains; propensity-scored P@k is that of Jain, Prabhu and Varma,
"Extreme Multi-label Loss Functions" (KDD 2016), with A = 0.55 and B = 1.5, normalised by the
best attainable value as in the Extreme Classification Repository.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["RankingMetrics", "propensities"]


def propensities(
    counts: NDArray[np.int64], num_queries: int, a: float = 0.55, b: float = 1.5
) -> NDArray[np.float64]:
    """Propensity of each product, shape (K,), from its number of training occurrences."""
    c = (np.log(max(num_queries, 2)) - 1.0) * (b + 1.0) ** a
    result: NDArray[np.float64] = 1.0 / (1.0 + c * (counts + b) ** -a)
    return result


class RankingMetrics:
    """Accumulates metrics over queries, in memory that does not grow with their number.

    Args:
        precision_at, recall_at, ndcg_at, psp_at: the cut-offs.
        weights: inverse propensities, float64, shape (K,), for propensity-scored precision.
    """

    def __init__(
        self,
        *,
        precision_at: Sequence[int] = (1, 3, 5),
        recall_at: Sequence[int] = (10, 20, 100),
        ndcg_at: Sequence[int] = (10,),
        psp_at: Sequence[int] = (5,),
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.queries = 0
        self._precision = dict.fromkeys(precision_at, 0.0)
        self._recall = dict.fromkeys(recall_at, 0.0)
        self._ndcg = dict.fromkeys(ndcg_at, 0.0)
        self._weights = weights
        self._psp = dict.fromkeys(psp_at, (0.0, 0.0)) if weights is not None else {}
        self.depth = max((*precision_at, *recall_at, *ndcg_at, *psp_at), default=1)
        self._discounts = 1.0 / np.log2(np.arange(2, self.depth + 2))

    def add(self, ranked: NDArray[np.int64], true: NDArray[np.int64], num_true: int) -> None:
        """Score one query.

        Args:
            ranked: classes found, best first.
            true: the true classes that the catalog knows, without repeats.
            num_true: how many products are true, those unknown to the catalog included; a
                query with none is not counted.
        """
        if num_true == 0:
            return
        self.queries += 1
        ranked = ranked[: self.depth]
        hits = np.isin(ranked, true)
        running = np.concatenate([[0], np.cumsum(hits)])
        last = len(ranked)
        for k in self._precision:
            self._precision[k] += running[min(k, last)] / k
        for k in self._recall:
            self._recall[k] += running[min(k, last)] / num_true
        for k in self._ndcg:
            gained = self._discounts[: min(k, last)][hits[:k]].sum()
            self._ndcg[k] += gained / self._discounts[: min(k, num_true)].sum()
        if self._weights is not None:
            best = np.sort(self._weights[true])[::-1]
            for k, (got, attainable) in self._psp.items():
                found = self._weights[ranked[:k][hits[:k]]].sum() / k
                self._psp[k] = (got + found, attainable + best[:k].sum() / k)

    def results(self) -> dict[str, float]:
        """Means over the queries, keyed ``P@1``, ``R@20``, ``nDCG@10``, ``PSP@5``."""
        n = max(self.queries, 1)
        figures = {f"P@{k}": total / n for k, total in self._precision.items()}
        figures |= {f"R@{k}": total / n for k, total in self._recall.items()}
        figures |= {f"nDCG@{k}": total / n for k, total in self._ndcg.items()}
        for k, (got, attainable) in self._psp.items():
            figures[f"PSP@{k}"] = got / attainable if attainable else 0.0
        return {name: float(value) for name, value in figures.items()}

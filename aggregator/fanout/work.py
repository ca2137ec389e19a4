"""The work that turns a batch's rows into results, wherever it is done."""

from __future__ import annotations

from collections.abc import Callable
from time import thread_time

from aggregator.coverage import Coverage
from aggregator.fanout.batch import Batch, Job
from aggregator.results import SearchResult
from mach.features import SparseBatch
from mach.wire import EncodedRows

__all__ = ["Merge", "Merging"]

#: The results of each of some jobs of one batch, from rows by repetition. Called on any thread.
Merge = Callable[
    [list[Job], SparseBatch, dict[int, EncodedRows], Coverage], list[list[SearchResult]]
]


class Merging:
    """A merge to be done: some jobs of a batch, and the rows there are.

    Attributes:
        batch: the whole batch.
        jobs: those to be answered.
        rows: what has come back, by repetition.
        coverage: which repetitions these are.
        arrived: when the last of them came, loop time.
        results: of each job, once :meth:`run` is through; or the error that stopped it.
        cpu_seconds: what it took.
    """

    __slots__ = ("arrived", "batch", "coverage", "cpu_seconds", "jobs", "results", "rows")

    def __init__(
        self,
        batch: Batch,
        jobs: list[Job],
        rows: dict[int, EncodedRows],
        coverage: Coverage,
        arrived: float,
    ) -> None:
        self.batch = batch
        self.jobs = jobs
        self.rows = rows
        self.coverage = coverage
        self.arrived = arrived
        self.cpu_seconds = 0.0
        self.results: list[list[SearchResult]] | Exception = []

    def run(self, merge: Merge) -> None:
        """Do it, on whatever thread this is; an error is what the callers get."""
        started = thread_time()
        try:
            self.results = merge(self.jobs, self.batch.payload.features, self.rows, self.coverage)
        except Exception as error:
            self.results = error
        self.cpu_seconds = thread_time() - started

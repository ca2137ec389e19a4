"""What shards answer, checked before anything is done with it."""

from __future__ import annotations

from mach.errors import InvalidInput, VersionMismatch
from mach.v1 import shard_pb2
from mach.wire import EncodedRows, check_rows

__all__ = ["read_answer"]


def read_answer(
    answer: shard_pb2.PredictResponse,
    *,
    bundle_version: str,
    num_queries: int,
    num_buckets: int,
    encoding: int,
    asked: tuple[int, ...],
) -> dict[int, EncodedRows]:
    """The rows of each repetition asked for, if the answer is what was asked for.

    Raises:
        VersionMismatch: if another bundle version computed it.
        InvalidInput: if a repetition is missing, or a size or value is wrong.
    """
    if answer.bundle_version != bundle_version:
        raise VersionMismatch(f"answered from bundle version {answer.bundle_version}")
    if (answer.num_queries, answer.num_buckets) != (num_queries, num_buckets):
        raise InvalidInput(
            "num_queries",
            f"{answer.num_queries} x {answer.num_buckets} values, "
            f"not {num_queries} x {num_buckets}",
        )
    if answer.encoding != encoding:
        raise InvalidInput("encoding", f"{answer.encoding}, not {encoding}")
    found = {}
    for part in answer.repetitions:
        if part.repetition in found:
            raise InvalidInput("repetitions", f"{part.repetition} is there twice")
        rows = EncodedRows(part.data, part.minimum, part.step)
        check_rows(rows, encoding, num_queries, num_buckets)
        found[part.repetition] = rows
    if missing := [repetition for repetition in asked if repetition not in found]:
        raise InvalidInput("repetitions", f"{missing[0]} is missing")
    return {repetition: found[repetition] for repetition in asked}

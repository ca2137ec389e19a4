"""Requests of ``mach.v1.ShardService`` to jobs, and finished jobs to responses."""

from __future__ import annotations

from collections.abc import Callable

from mach.errors import InvalidInput
from mach.v1 import shard_pb2
from mach.wire import ENCODINGS, sparse_from_proto
from shard_server.batcher import Job
from shard_server.core import ShardCore

__all__ = ["fill_response", "make_job"]


async def make_job(
    core: ShardCore,
    request: shard_pb2.PredictRequest,
    on_done: Callable[[Job], None],
    *,
    received: float,
    deadline: float | None,
) -> Job:
    """Check a request and make a job of it.

    Raises:
        InvalidInput: naming the field at fault.
        RepetitionNotFound, VersionMismatch, Unavailable: see :class:`BundleHost` and
            :class:`LoadedBundle`.
    """
    loaded = core.bundles.get(request.bundle_version)
    repetitions = loaded.select(request.repetitions)
    encoding = request.encoding or shard_pb2.ENCODING_UINT8
    if encoding not in ENCODINGS:
        raise InvalidInput("encoding", f"{encoding} is unknown")
    kind = request.WhichOneof("input")
    if kind == "features":
        features = sparse_from_proto(request.features, loaded.num_features)
        core.check(features)
    elif kind == "texts":
        features = await core.featurize(loaded, request.texts.texts)
    else:
        raise InvalidInput("input", "either features or texts is needed")
    core.check_answer(len(features), len(repetitions), loaded.num_buckets, encoding)
    return Job(
        loaded, features, repetitions, encoding, on_done, deadline=deadline, received=received
    )


def fill_response(response: shard_pb2.PredictResponse, job: Job) -> None:
    """Write a finished job's answers."""
    response.bundle_version = job.loaded.version
    response.num_queries = len(job.features)
    response.num_buckets = job.loaded.num_buckets
    response.encoding = job.encoding  # type: ignore[assignment]
    response.queue_us = int(job.queue_seconds * 1e6)
    response.inference_us = int(job.inference_seconds * 1e6)
    for repetition in job.repetitions:
        rows = job.answers[repetition]
        response.repetitions.add(
            repetition=repetition, data=rows.data, minimum=rows.minimum, step=rows.step
        )

"""The classifiers in this process, behind the same seam as the shards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from aggregator.transport.base import Done, Payload, ShardDescription, Withdraw
from mach.errors import MachError, VersionMismatch
from mach.inference import LoadedBundle
from mach.tracing import Headers
from mach.v1 import shard_pb2
from mach.wire import encode_rows

__all__ = ["InProcessTransport"]


class InProcessTransport:
    """Runs a :class:`LoadedBundle` in one thread; what a shard would answer, it answers."""

    def __init__(
        self, loaded: LoadedBundle, *, address: str = "in-process", max_batch_size: int = 256
    ) -> None:
        self.address = address
        self.on_broken: Callable[[str], None] = lambda _: None
        self._loaded = loaded
        self._max_batch_size = max_batch_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=address)

    async def describe(self, seconds: float) -> ShardDescription:
        """See :class:`ShardTransport`."""
        return ShardDescription(
            (self._loaded.version,),
            self._loaded.repetitions,
            self._loaded.num_buckets,
            self._loaded.num_features,
            self._loaded.provider,
            self._max_batch_size,
        )

    def predict(
        self,
        payload: Payload,
        repetitions: tuple[int, ...],
        seconds: float,
        done: Done,
        trace: Headers = (),
    ) -> Withdraw:
        """See :class:`ShardTransport`."""
        loop = asyncio.get_running_loop()
        expires = loop.time() + seconds
        withdrawn = False

        def withdraw() -> None:
            nonlocal withdrawn
            withdrawn = True

        def finish(answer: shard_pb2.PredictResponse | MachError) -> None:
            if not withdrawn:
                done(answer)

        def work() -> None:
            if withdrawn or loop.time() > expires:
                return
            try:
                answer: shard_pb2.PredictResponse | MachError = self._run(payload, repetitions)
            except MachError as error:
                answer = error
            loop.call_soon_threadsafe(finish, answer)

        self._thread.submit(work)
        return withdraw

    def _run(self, payload: Payload, repetitions: tuple[int, ...]) -> shard_pb2.PredictResponse:
        loaded = self._loaded
        if payload.bundle_version not in ("", loaded.version):
            raise VersionMismatch(f"bundle version {loaded.version} is loaded")
        started = perf_counter()
        rows = loaded.run(payload.features, loaded.select(repetitions))
        answer = shard_pb2.PredictResponse(
            bundle_version=loaded.version,
            num_queries=len(payload.features),
            num_buckets=loaded.num_buckets,
            encoding=payload.encoding,  # type: ignore[arg-type]
            inference_us=int((perf_counter() - started) * 1e6),
        )
        for repetition, values in rows.items():
            encoded = encode_rows(values, payload.encoding)
            answer.repetitions.add(
                repetition=repetition,
                data=encoded.data,
                minimum=encoded.minimum,
                step=encoded.step,
            )
        return answer

    async def close(self) -> None:
        """See :class:`ShardTransport`."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

"""The plain design: one call per repetition and query, ``asyncio.gather``, merge, answer.

No coalescing, no streams, no replicas, no admission. It stands on the same server, features,
merge and catalog as the aggregator it is compared with, and can ask other model servers, too.
Run as ``python -m benchmarks.fleet.plain_aggregator``; made by the benchmarks only.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
from prometheus_client import CollectorRegistry
from pydantic_settings import SettingsConfigDict

from benchmarks.fleet.backends import Backend, MachBackend, MlServerBackend, MosecBackend
from mach.bundle import Bundle
from mach.merge import TopK
from mach.serving import CommaSeparatedStrings, Health, Service, ServingSettings, main
from mach.v1 import search_pb2, search_pb2_grpc

_BACKENDS: dict[str, type[Any]] = {
    "mach": MachBackend,
    "mlserver": MlServerBackend,
    "mosec": MosecBackend,
}


class PlainSettings(ServingSettings):
    """Its flags."""

    model_config = SettingsConfigDict(env_prefix="MACH_PLAIN_")

    bundle: Path
    """Directory of the bundle."""
    shards: CommaSeparatedStrings
    """Addresses of the model servers, that of repetition r at place r."""
    backend: Literal["mach", "mlserver", "mosec"] = "mach"
    """What these servers are."""


class PlainSearch(search_pb2_grpc.SearchServiceServicer):
    """Answers ``Search`` for text."""

    def __init__(self, bundle: Bundle, backends: list[Backend]) -> None:
        self._bundle = bundle
        self._rule = bundle.merge_rule
        self._top_k = TopK(bundle.buckets)
        self._backends = backends
        bundle.featurizer.batch(["warm up"])

    async def Search(self, request: Any, context: Any) -> Any:  # noqa: N802
        row = self._bundle.featurizer.batch([request.query.text])
        response = search_pb2.SearchResponse(bundle_version=self._bundle.version)
        if not len(row.indices):
            return response
        rows = await asyncio.gather(*(backend.predict(row) for backend in self._backends))
        found = self._top_k.search(self._rule.transform(np.stack(rows)), request.options.k or 10)
        ids = self._bundle.catalog.product_ids(found.classes.tolist())
        scores = self._rule.final(found.scores, len(rows)).tolist()
        for product_id, score in zip(ids, scores, strict=True):
            response.result.products.add(product_id=product_id, score=score)
        response.result.coverage.answered = response.result.coverage.total = len(rows)
        return response


class PlainService(Service):
    """The plain aggregator as a process."""

    names = ("mach.v1.SearchService",)

    def __init__(self, settings: PlainSettings, registry: CollectorRegistry) -> None:
        bundle = Bundle.open(settings.bundle)
        kind = _BACKENDS[settings.backend]
        num_buckets = bundle.manifest.num_buckets
        self._backends = [kind(address, num_buckets) for address in settings.shards]
        self._search = PlainSearch(bundle, self._backends)

    def register(self, server: grpc.aio.Server) -> None:
        search_pb2_grpc.add_SearchServiceServicer_to_server(self._search, server)

    async def start(self, health: Health) -> None:
        health.set_serving(True)

    async def close(self) -> None:
        await asyncio.gather(*(backend.close() for backend in self._backends))


if __name__ == "__main__":
    sys.exit(main(PlainSettings, PlainService, component="plain_aggregator"))

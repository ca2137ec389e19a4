from __future__ import annotations

from functools import cache

import pytest

from aggregator.merging import warm_up
from aggregator.served import ServedBundle
from mach.bundle import Bundle
from mach.inference import LoadedBundle
from mach.v1 import shard_pb2


@pytest.fixture(scope="session")
def served(tiny_bundle: Bundle) -> ServedBundle:
    served = ServedBundle(tiny_bundle)
    warm_up(served, shard_pb2.ENCODING_UINT8)
    return served


@pytest.fixture(scope="session")
def load(tiny_bundle: Bundle):
    """Repetitions of the tiny bundle, loaded once."""
    return cache(lambda *repetitions: LoadedBundle.load(tiny_bundle, repetitions))


@pytest.fixture(scope="session")
def one_each(load) -> dict[str, LoadedBundle]:
    """Four shards with a repetition each."""
    return {f"shard{r}:1": load(r) for r in range(4)}


@pytest.fixture(scope="session")
def titles(tiny_bundle: Bundle) -> list[str]:
    return tiny_bundle.catalog.table["title"].to_pylist()

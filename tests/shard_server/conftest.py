from __future__ import annotations

import pytest

from mach.bundle import Bundle
from mach.inference import LoadedBundle
from tests.shard_server.helpers import GatedBundle


@pytest.fixture(scope="session")
def loaded(tiny_bundle: Bundle) -> LoadedBundle:
    return LoadedBundle.load(tiny_bundle, [0, 1, 2, 3])


@pytest.fixture
def gated(loaded: LoadedBundle):
    bundle = GatedBundle(loaded)
    yield bundle
    bundle.gate.set()

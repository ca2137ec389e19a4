"""Fixtures that tests of several packages use."""

from __future__ import annotations

import socket

import pytest
from hypothesis import settings

from mach.bundle import Bundle
from tests.bundles import make_bundle

# Compiled code is compiled within some example, and CI machines are shared: time proves nothing.
settings.register_profile("mach", deadline=None)
settings.load_profile("mach")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """200 products, 16 buckets, 4 repetitions; shared: copy it before you damage it."""
    return make_bundle(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A live fleet on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mach.bundle import Bundle
from mach.client import MachClient
from mach.fleet import LocalFleet


@pytest.fixture
def fleet(tiny_bundle: Bundle) -> Iterator[LocalFleet]:
    """One process a repetition of the tiny bundle, and an aggregator."""
    with LocalFleet(tiny_bundle) as running:
        yield running


@pytest.fixture
def client(fleet: LocalFleet) -> Iterator[MachClient]:
    """A client of that fleet."""
    with MachClient(fleet.address, timeout=5.0) as connected:
        yield connected

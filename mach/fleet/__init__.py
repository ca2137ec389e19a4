"""A whole fleet on this machine: shard servers and an aggregator as child processes."""

from mach.fleet.local import FleetStatus, LocalFleet
from mach.fleet.process import ServerProcess, ServerState

__all__ = ["FleetStatus", "LocalFleet", "ServerProcess", "ServerState"]

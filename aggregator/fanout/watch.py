"""One shard address: what it holds, asked now and then, and whether it answers."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from aggregator.coverage import MissingReason
from aggregator.fanout.endpoint import Endpoint, State
from aggregator.policy import FanOutPolicy
from aggregator.transport import ShardDescription
from mach.errors import DeadlineExceeded, MachError

if TYPE_CHECKING:
    from aggregator.fanout.fleet import Fleet

__all__ = ["Watch"]

_log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 2.0
_STABLE_SECONDS = 5.0


class Watch:
    """Keeps one endpoint's state true."""

    def __init__(self, fleet: Fleet, endpoint: Endpoint, policy: FanOutPolicy) -> None:
        """Nothing is asked before :meth:`run`."""
        self._fleet = fleet
        self._endpoint = endpoint
        self._policy = policy
        self._failures = 0
        self._complaint = ""
        self._described = float("-inf")
        self._broke = float("-inf")
        endpoint.transport.on_broken = self._broken

    async def run(self) -> None:
        """Until cancelled."""
        endpoint = self._endpoint
        while True:
            try:
                seconds = await self._look()
            except Exception:  # a defect of ours must not be the last time that we looked
                _log.exception("shard %s could not be asked for its state", endpoint.address)
                self._failures += 1
                seconds = self._retry_seconds()
                with suppress(Exception):  # it may be this that failed
                    self._away(State.UNREACHABLE, "what it answered could not be used")
            endpoint.wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await endpoint.wake.wait()

    async def _look(self) -> float:
        """Ask for its state if there is need, and say in how many seconds to look again."""
        endpoint, policy = self._endpoint, self._policy
        now = asyncio.get_running_loop().time()
        if endpoint.state is State.EJECTED and now < endpoint.ejected_until:
            return endpoint.ejected_until - now
        if self._broke > now - self._retry_seconds():
            return self._broke + self._retry_seconds() - now
        if (
            endpoint.state is State.READY
            and now - endpoint.heard < policy.probe_seconds
            and now - self._described < policy.describe_seconds
        ):
            return policy.probe_seconds
        try:
            description = await endpoint.transport.describe(policy.probe_seconds)
        except MachError as error:
            self._failures += 1
            silent = isinstance(error, DeadlineExceeded) and endpoint.bundle_versions
            if silent and endpoint.state is State.READY and self._failures == 1:
                return 0.0  # one answer may be lost to a pause; two in a row are an outage
            self._away(State.SILENT if silent else State.UNREACHABLE, str(error))
            return self._retry_seconds()
        if asyncio.get_running_loop().time() - self._broke > _STABLE_SECONDS:
            self._failures = 0
        self._learn(description)
        return policy.probe_seconds

    @property
    def answers(self) -> bool:
        """Whether the endpoint was reachable when last heard of."""
        return self._endpoint.state in (State.READY, State.EJECTED, State.SILENT)

    async def ask(self) -> None:
        """Ask what it holds, apart from the usual rounds; a failure is for these to find."""
        with suppress(MachError):
            self._learn(await self._endpoint.transport.describe(self._policy.probe_seconds))

    def _retry_seconds(self) -> float:
        if not self._failures:
            return 0.0
        seconds: float = _FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10)
        return min(seconds, _LONGEST_RETRY_SECONDS) * random.uniform(0.8, 1.2)

    def _broken(self, why: str) -> None:
        self._failures += 1
        self._broke = asyncio.get_running_loop().time()
        self._away(State.UNREACHABLE, why)
        self._endpoint.wake.set()

    def _away(self, state: State, why: str) -> None:
        endpoint = self._endpoint
        if endpoint.state not in (State.UNREACHABLE, State.SILENT):
            _log.warning("shard %s does not answer: %s", endpoint.address, why)
        if state is State.SILENT:
            endpoint.reason = MissingReason.TIMEOUT
        self._fleet.set_state(endpoint, state, f"does not answer: {why}")

    def _learn(self, description: ShardDescription) -> None:
        endpoint, fleet = self._endpoint, self._fleet
        now = asyncio.get_running_loop().time()
        self._described = now
        before = _traits_of(endpoint)
        endpoint.max_batch_size = max(1, description.max_batch_size)
        endpoint.bundle_versions = description.bundle_versions
        endpoint.repetitions = description.repetitions
        endpoint.shape = (description.num_buckets, description.num_features)
        same = _traits_of(endpoint) == before
        if endpoint.state is State.EJECTED and now < endpoint.ejected_until:
            if not same:
                fleet.changed()
            return
        if endpoint.state is not State.READY:
            endpoint.readmit()
            _log.info(
                "shard %s is ready with repetitions %s (%s)",
                endpoint.address,
                ",".join(map(str, endpoint.repetitions)),
                description.provider,
            )
            fleet.set_state(endpoint, State.READY)
        elif not same:
            fleet.changed()
        self.complain()

    def complain(self) -> None:
        """Log, once, that it is reachable but cannot be used."""
        _, complaint = self._fleet.standing(self._endpoint)
        if complaint and complaint != self._complaint and self._endpoint.state is State.READY:
            _log.error("shard %s %s", self._endpoint.address, complaint)
        self._complaint = complaint


def _traits_of(endpoint: Endpoint) -> tuple[object, ...]:
    """What an endpoint is chosen by, beside whether it answers."""
    return (
        endpoint.bundle_versions,
        endpoint.repetitions,
        endpoint.shape,
        endpoint.max_batch_size,
    )

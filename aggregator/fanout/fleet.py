"""The shards: who they are, what they hold, and which of them can be used."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable

from aggregator.fanout.endpoint import Endpoint, State
from aggregator.fanout.routes import Routes, find_routes
from aggregator.fanout.targets import Resolve, Target, resolve_name
from aggregator.fanout.watch import Watch
from aggregator.policy import FanOutPolicy
from aggregator.served import Expected
from aggregator.transport import ShardTransport
from mach.wire import rows_that_fit

__all__ = ["STANDINGS", "Fleet"]

_log = logging.getLogger(__name__)

_DRAIN_SECONDS = 5.0


#: What :meth:`Fleet.standing` may say of an endpoint.
STANDINGS = (*(state.value for state in State), "mismatch", "unfit")


class Fleet:
    """Keeps a connection to every shard address and an account of its state.

    Each endpoint has a task that asks it what it holds, at the start, after it broke and
    every so often. The traffic itself counts as a sign of life, so a busy fleet is not asked.

    Attributes:
        endpoints: every endpoint known, by address.
    """

    def __init__(
        self,
        targets: Iterable[Target],
        connect: Callable[[str, str], ShardTransport],
        policy: FanOutPolicy,
        *,
        resolve: Resolve = resolve_name,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is opened before :meth:`start`.

        Args:
            targets: the addresses and names to use.
            connect: makes a transport for an address; the second argument is the name that was
                looked up to find it, or "".
            policy: how often to ask and how long to wait.
            resolve: looks up names.
            on_change: called when the state of an endpoint changed.
        """
        self.endpoints: dict[str, Endpoint] = {}
        self._expected: Expected | None = None
        self._targets = list(targets)
        self._connect = connect
        self._policy = policy
        self._resolve = resolve
        self._on_change = on_change
        self._routes: dict[Expected, Routes] = {}
        self._max_rows: dict[Expected, int] = {}
        self._watches: dict[str, Watch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._resolver: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to connect; returns at once, whether or not a shard answers."""
        for target in self._targets:
            if not target.is_name:
                self._add(target.text)
        if any(target.is_name for target in self._targets):
            self._resolver = asyncio.create_task(self._keep_resolving(), name="resolver")

    async def close(self) -> None:
        """Close all connections."""
        tasks = [*self._tasks.values(), *self._retiring]
        if self._resolver is not None:
            tasks.append(self._resolver)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(e.transport.close() for e in self.endpoints.values()))

    def expect(self, expected: Expected) -> None:
        """Say which bundle is active: endpoints without it are reported, and not ready."""
        self._expected = expected
        self.changed()
        for watch in self._watches.values():
            watch.complain()

    async def refresh(self) -> None:
        """Ask every endpoint that answers what it holds, now."""
        await asyncio.gather(
            *(watch.ask() for watch in list(self._watches.values()) if watch.answers)
        )

    def ask_again(self) -> None:
        """Have every endpoint asked for its state soon, however lately it was heard of."""
        for endpoint in self.endpoints.values():
            endpoint.ask_again()

    def routes(self, expected: Expected) -> Routes:
        """What can be asked at the moment for a bundle."""
        routes = self._routes.get(expected)
        if routes is None:
            routes = self._routes[expected] = find_routes(self.endpoints.values(), expected)
        return routes

    def max_rows(self, expected: Expected) -> int:
        """The most queries of a bundle that all endpoints accept in a message, and answer in one.

        It is one at least, and the policy's most where no endpoint is known.
        """
        most = self._max_rows.get(expected)
        if most is None:
            most = self._max_rows[expected] = self._find_max_rows(expected)
        return most

    def _find_max_rows(self, expected: Expected) -> int:
        policy = self._policy
        most = policy.max_rows
        for endpoint in self.endpoints.values():
            if endpoint.state not in (State.READY, State.EJECTED, State.SILENT):
                continue
            fitting = rows_that_fit(
                policy.max_message_bytes,
                max(1, len(endpoint.repetitions)),
                expected.num_buckets,
                policy.encoding,
            )
            most = min(most, endpoint.max_batch_size, fitting)
        return max(1, most)

    def standing(self, endpoint: Endpoint) -> tuple[str, str]:
        """An endpoint's state as a word, and why it is not used, seen from the active bundle."""
        expected = self._expected
        misfit = "" if expected is None else endpoint.misfit(expected)
        if endpoint.state is not State.READY or expected is None or not misfit:
            return endpoint.state.value, endpoint.message
        holds = expected.bundle_version in endpoint.bundle_versions
        return "unfit" if holds else "mismatch", misfit

    def eject(self, endpoint: Endpoint, reason: str, *, wrong: bool) -> bool:
        """Leave out an endpoint that was late, or ``wrong``, too often.

        One that is merely late stays in use where too few repetitions would be left: an
        answer late is better than none.

        Returns:
            Whether it is left out from now on.
        """
        if endpoint.state is not State.READY:
            return False
        if not wrong and self._expected is not None:
            others = (e for e in self.endpoints.values() if e is not endpoint)
            left = find_routes(others, self._expected).num_ready
            if left < self._policy.minimum(self._expected.num_repetitions):
                return False
        now = asyncio.get_running_loop().time()
        endpoint.eject(now, self._policy.eject_seconds, self._policy.max_eject_seconds)
        seconds = endpoint.ejected_until - now
        _log.warning("shard %s %s: left out for %.0f s", endpoint.address, reason, seconds)
        self.set_state(endpoint, State.EJECTED, reason)
        endpoint.wake.set()
        return True

    def set_state(self, endpoint: Endpoint, state: State, message: str = "") -> None:
        """Note what an endpoint is, and why."""
        changed = endpoint.state is not state
        endpoint.state, endpoint.message = state, message
        if changed:
            self.changed()

    def changed(self) -> None:
        """Forget what was worked out from the endpoints: one of them is another now."""
        self._routes.clear()
        self._max_rows.clear()
        self._on_change()

    def _add(self, address: str, name: str = "") -> None:
        endpoint = Endpoint(address, self._connect(address, name))
        self.endpoints[address] = endpoint
        watch = self._watches[address] = Watch(self, endpoint, self._policy)
        self._tasks[address] = asyncio.create_task(watch.run(), name=f"watch {address}")

    def _remove(self, address: str) -> None:
        endpoint = self.endpoints.pop(address)
        self._watches.pop(address)
        self._tasks.pop(address).cancel()
        endpoint.state = State.UNREACHABLE
        self.changed()
        task = asyncio.create_task(_retire(endpoint))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _keep_resolving(self) -> None:
        found: dict[str, list[str]] = {}
        failing: set[str] = set()
        while True:
            try:
                await self._resolve_once(found, failing)
            except Exception:  # a defect of ours must not be the last time that we looked
                _log.exception("the shards' names could not be looked up")
            await asyncio.sleep(self._policy.resolve_seconds * random.uniform(0.8, 1.2))

    async def _resolve_once(self, found: dict[str, list[str]], failing: set[str]) -> None:
        """Look all names up, and connect to what they have; ``found`` and ``failing`` are kept."""
        for target in self._targets:
            if not target.is_name:
                continue
            try:
                found[target.text] = await target.resolve(self._resolve)
                failing.discard(target.text)
            except OSError as error:  # what was found last goes on being used
                if target.text not in failing:
                    _log.warning("%s cannot be looked up: %s", target.text, error)
                failing.add(target.text)
        wanted = {target.text: "" for target in self._targets if not target.is_name}
        for target in self._targets:
            for address in found.get(target.text, ()):
                wanted.setdefault(address, target.host.rstrip("."))
        for address in sorted(wanted.keys() - self.endpoints.keys()):
            self._add(address, wanted[address])
        for address in sorted(self.endpoints.keys() - wanted.keys()):
            _log.info("shard %s is not in the DNS any more", address)
            self._remove(address)


async def _retire(endpoint: Endpoint) -> None:
    """Let what is in flight finish, then close."""
    deadline = asyncio.get_running_loop().time() + _DRAIN_SECONDS
    try:
        while endpoint.calls and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    finally:
        await endpoint.transport.close()

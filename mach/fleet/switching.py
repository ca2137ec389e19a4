"""Changing the bundle of a whole fleet while it serves, through its servers' admin ports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import grpc
from pydantic import Field, TypeAdapter, ValidationError

from mach.direct import DIRECT
from mach.errors import (
    ConfigError,
    DeadlineExceeded,
    MachError,
    Overloaded,
    UserError,
    VersionMismatch,
    from_status,
)
from mach.files import check_target, write_atomically
from mach.tls import ClientTls
from mach.v1 import admin_pb2, admin_pb2_grpc

__all__ = [
    "AdminPort",
    "FleetAdmin",
    "HeldBundle",
    "check_fleet_file",
    "read_fleet_file",
    "remove_fleet_file",
    "write_fleet_file",
]


@dataclass(frozen=True)
class AdminPort:
    """Where a server of a fleet takes orders.

    Attributes:
        name: for people.
        address: HOST:PORT of its admin port.
        is_aggregator: whether it is an aggregator; a shard otherwise.
        tls: whether it speaks TLS.
    """

    name: str
    address: str
    is_aggregator: bool
    tls: bool = False


@dataclass(frozen=True)
class HeldBundle:
    """A bundle in a server's memory."""

    version: str
    path: str
    active: bool


_FLEET_FILE = TypeAdapter(Annotated[list[AdminPort], Field(min_length=1)])


def check_fleet_file(path: Path) -> None:
    """Make sure that a fleet may write its file here: nothing is there, or a dead fleet's file.

    Raises:
        ConfigError: if it is another file, or of a fleet that still runs.
        InvalidInput: if no file can be written there.
    """
    if not path.exists():
        check_target("--fleet-file", path)
        return
    if not path.is_file():  # a pipe would be read for ever
        raise ConfigError(f"{path} is not a file of `mach serve --fleet-file`")
    for port in read_fleet_file(path):
        if _answers(port):
            raise ConfigError(
                f"{path} is the file of a fleet that still runs: {port.name} answers at "
                f"{port.address}"
            )


def _answers(port: AdminPort) -> bool:
    """Whether a server of a fleet is there; one that is only slow is one."""
    try:
        FleetAdmin([replace(port, tls=False)], timeout=2.0).loaded()
    except MachError as error:
        return isinstance(error, (UserError, Overloaded, DeadlineExceeded))
    return True


def write_fleet_file(path: Path, ports: Sequence[AdminPort]) -> None:
    """Write where a fleet's admin ports are, atomically.

    Raises:
        UserError: as :func:`check_fleet_file` does.
        OSError: if it cannot be written.
    """
    check_fleet_file(path)
    write_atomically(path, json.dumps([asdict(port) for port in ports], indent=1) + "\n")


def remove_fleet_file(path: Path, ports: Sequence[AdminPort]) -> None:
    """Remove what :func:`write_fleet_file` wrote, unless something else is there by now."""
    with suppress(ConfigError):
        if read_fleet_file(path) == list(ports):
            path.unlink(missing_ok=True)


def read_fleet_file(path: Path) -> list[AdminPort]:
    """Read what :func:`write_fleet_file` wrote.

    Raises:
        ConfigError: if it cannot be read or is something else.
    """
    try:
        return _FLEET_FILE.validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValidationError:
        raise ConfigError(f"{path} is not a file of `mach serve --fleet-file`") from None


class FleetAdmin:
    """The admin services of a fleet's servers.

    Requests name the version that they want of a shard, and every server can hold two. So a
    bundle is loaded everywhere first; then the aggregators change to it, one by one, and the
    shards, which only changes what they answer to requests that name none. Going back is the
    same, and quick: the former bundle is still loaded.
    """

    def __init__(
        self,
        ports: Sequence[AdminPort],
        *,
        tls: ClientTls | None = None,
        metadata: Callable[[], Any] = lambda: None,
        timeout: float = 600.0,
        on_event: Callable[[str], None] = lambda message: None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            ports: of all servers.
            tls: for those that speak TLS.
            metadata: gives a call's metadata: the token.
            timeout: seconds that one server may take to load a bundle.
            on_event: told each step that is done.

        Raises:
            ConfigError: if there is no server, or one speaks TLS and ``tls`` is missing.
        """
        if not ports:
            raise ConfigError("name the admin ports of the fleet's servers")
        for port in ports:
            if port.tls and tls is None:
                raise ConfigError(f"{port.name} speaks TLS: --tls or --tls-ca is needed")
        self._shards = [port for port in ports if not port.is_aggregator]
        self._aggregators = [port for port in ports if port.is_aggregator]
        self._tls = tls
        self._metadata = metadata
        self._timeout = timeout
        self._on_event = on_event

    @contextmanager
    def _stub(self, port: AdminPort) -> Iterator[admin_pb2_grpc.AdminServiceStub]:
        if port.tls and self._tls is not None:
            channel = grpc.secure_channel(
                port.address, self._tls.credentials(), options=[*DIRECT, *self._tls.options]
            )
        else:
            channel = grpc.insecure_channel(port.address, options=DIRECT)
        with channel:
            yield admin_pb2_grpc.AdminServiceStub(channel)

    def _call(self, port: AdminPort, method: str, request: Any) -> Any:
        with self._stub(port) as stub:
            try:
                return getattr(stub, method)(
                    request, timeout=self._timeout, metadata=self._metadata()
                )
            except grpc.RpcError as error:
                reason = from_status(error.code(), f"{port.name}: {error.details()}")
                raise reason from None

    def loaded(self) -> dict[str, list[HeldBundle]]:
        """What each server holds, by name, its active bundle first.

        Raises:
            MachError: if a server does not answer; the message names it.
        """
        found = {}
        for port in [*self._aggregators, *self._shards]:
            answer = self._call(port, "DescribeBundles", admin_pb2.DescribeBundlesRequest())
            found[port.name] = [
                HeldBundle(bundle.bundle_version, bundle.path, bundle.active)
                for bundle in answer.bundles
            ]
        return found

    def load(self, path: str, version: str = "") -> str:
        """Load a bundle on every server, one after another, beside what they serve.

        A server holds two, so one on standby makes room, and stays lost if a later server refuses.

        Args:
            path: its directory on the servers' machines.
            version: the version expected; whatever the first server finds where not given.

        Returns:
            Its version.

        Raises:
            MachError: if one refuses; those that had loaded it drop it again, as they do where
                the load is interrupted.
        """
        return self._load(path, version)[0]

    def _load(self, path: str, version: str) -> tuple[str, list[AdminPort]]:
        """:meth:`load`; also the servers that had not held the bundle before."""
        fresh: list[AdminPort] = []
        for port in [*self._shards, *self._aggregators]:
            try:
                before = self._call(port, "DescribeBundles", admin_pb2.DescribeBundlesRequest())
                request = admin_pb2.LoadBundleRequest(path=path, bundle_version=version)
                version = self._call(port, "LoadBundle", request).bundle.bundle_version
            except BaseException:  # an interrupt, too, leaves nothing loaded
                self._unload(fresh, version)
                raise
            if version not in [bundle.bundle_version for bundle in before.bundles]:
                fresh.append(port)
            self._on_event(f"{port.name}: loaded")
        return version, fresh

    def _unload(self, ports: Sequence[AdminPort], version: str) -> None:
        request = admin_pb2.UnloadBundleRequest(bundle_version=version)
        for port in ports:
            if self._attempt(port, "UnloadBundle", request):
                self._on_event(f"{port.name}: unloaded")

    def activate(self, version: str) -> str:
        """Make a bundle that every server holds the active one.

        Returns:
            The version that was active on the aggregators before.

        Raises:
            VersionMismatch: if the aggregators were not of one version before.
            MachError: if a server refuses; the aggregators that had changed change back.
        """
        previous: dict[AdminPort, str] = {}
        for port in [*self._aggregators, *self._shards]:
            request = admin_pb2.ActivateBundleRequest(bundle_version=version)
            try:
                previous[port] = self._call(port, "ActivateBundle", request).previous_version
            except BaseException:
                for other, former in reversed(previous.items()):
                    self._attempt(
                        other,
                        "ActivateBundle",
                        admin_pb2.ActivateBundleRequest(bundle_version=former),
                    )
                raise
            self._on_event(f"{port.name}: active")
        before = {previous[port] for port in self._aggregators or self._shards}
        if len(before) > 1:
            raise VersionMismatch(
                f"all servers have changed to {version}, but from different versions: "
                f"{', '.join(sorted(before))}"
            )
        return before.pop()

    def switch(self, path: str, version: str = "") -> tuple[str, str]:
        """:meth:`load` and :meth:`activate`; the former version and the new one.

        Raises:
            ConfigError: if the ports of the aggregators or those of the shards are missing.
            MachError: if a server refuses; what was loaded for this is dropped again.
        """
        if not self._aggregators or not self._shards:
            raise ConfigError(
                "a switch needs all servers of the fleet: give both --aggregators and --shards"
            )
        version, fresh = self._load(path, version)
        try:
            return self.activate(version), version
        except BaseException:
            if not self._may_be_active(version):
                self._unload(fresh, version)
            raise

    def _may_be_active(self, version: str) -> bool:
        """Whether an aggregator may still ask shards for it: one that could not change back."""
        try:
            answers = [
                self._call(port, "DescribeBundles", admin_pb2.DescribeBundlesRequest())
                for port in self._aggregators
            ]
        except MachError as error:
            self._on_event(f"{version[:12]} stays loaded: {error}")
            return True
        return version in [
            bundle.bundle_version
            for answer in answers
            for bundle in answer.bundles
            if bundle.active
        ]

    def _attempt(self, port: AdminPort, method: str, request: Any) -> bool:
        try:
            self._call(port, method, request)
        except MachError as error:
            self._on_event(str(error))
            return False
        return True

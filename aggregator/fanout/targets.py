"""From what ``--shards`` says to addresses that can be connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mach.errors import ConfigError
from mach.serving.settings import split_address

__all__ = ["Resolve", "Target", "resolve_name"]

_DNS = "dns:///"

#: Host and port to addresses.
Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve_name(host: str, port: int) -> list[str]:
    """Every address of a name, as ``IP:PORT``.

    Raises:
        OSError: if it cannot be looked up.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # part of it is empty or too long, says Python, which asks nobody
        raise OSError(f"it is no name: {error}") from error
    addresses = set()
    for family, _, _, _, where in found:
        ip = str(where[0])
        addresses.add(f"[{ip}]:{port}" if family == socket.AF_INET6 else f"{ip}:{port}")
    return sorted(addresses)


@dataclass(frozen=True)
class Target:
    """One entry of ``--shards``: an address, or a name that stands for any number of them."""

    text: str
    host: str
    port: int
    is_name: bool

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``HOST:PORT``, ``unix:PATH`` or ``dns:///NAME:PORT``.

        Raises:
            ConfigError: if it is none of these.
        """
        if text.startswith("unix:"):
            return cls(text, "", 0, False)
        is_name = text.startswith(_DNS)
        try:
            host, port = split_address(text.removeprefix(_DNS))
        except ValueError as error:
            raise ConfigError(f"shards: {error}, nor dns:///NAME:PORT") from None
        return cls(text, host, port, is_name)

    async def resolve(self, resolve: Resolve) -> list[str]:
        """The addresses to connect to now.

        Raises:
            OSError: if the name cannot be looked up.
        """
        return await resolve(self.host, self.port) if self.is_name else [self.text]

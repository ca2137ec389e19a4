"""Opening ports, and telling which were opened."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from urllib.parse import unquote

import grpc

from mach.errors import ConfigError
from mach.serving.settings import split_address

__all__ = ["bind", "reason_of", "write_ready_file"]

_CONNECT_SECONDS = 1.0


def reason_of(error: OSError | UnicodeError) -> str:
    """Why an address cannot be had, for people; a name such as ``a..b`` is a UnicodeError."""
    if isinstance(error, UnicodeError):
        return "the host is not a valid name"
    return error.strerror or str(error)


def _probe(flag: str, address: str, reuse_port: bool) -> None:
    """Bind and release the address: the system's reason is clearer than gRPC's."""
    try:
        host, port = split_address(address)
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(where)
            if not reuse_port:
                probe.listen()  # with SO_REUSEADDR alone a second bind() may pass
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{flag} {address}: {reason_of(error)}") from error


def _probe_unix(flag: str, address: str) -> None:
    """Make sure that no server is there: gRPC would take its place, and its callers, unasked."""
    path = unquote(address.removeprefix("unix:"))
    if path.startswith("//"):  # unix:///PATH, as gRPC allows
        path = "/" + path.lstrip("/")
    if not path:
        raise ConfigError(f"{flag} {address}: a path must follow unix:")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_SECONDS)  # a full queue would be waited for
            probe.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return  # nothing, or what a dead server left
    except (TimeoutError, BlockingIOError):
        pass  # it is there, and busy
    except OSError as error:
        raise ConfigError(f"{flag} {address}: {reason_of(error)}") from error
    raise ConfigError(f"{flag} {address}: another server answers there")


def bind(
    server: grpc.aio.Server,
    flag: str,
    address: str,
    *,
    reuse_port: bool = False,
    credentials: grpc.ServerCredentials | None = None,
) -> str:
    """Open a server's port.

    Args:
        server: not started yet.
        flag: what named the address, for messages.
        address: HOST:PORT or unix:PATH.
        reuse_port: whether others may listen on it too.
        credentials: for TLS; plain text where not given.

    Returns:
        The address, its port resolved.

    Raises:
        ConfigError: if it cannot be bound, or another server answers at the path.
    """
    is_unix = address.startswith("unix:")
    if is_unix:
        _probe_unix(flag, address)
    else:
        _probe(flag, address, reuse_port)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        reason = "" if credentials is None else ", or gRPC does not accept the certificate"
        raise ConfigError(f"{flag} {address}: the address cannot be bound{reason}") from error
    return address if is_unix else f"{address.rpartition(':')[0]}:{port}"


def write_ready_file(
    path: Path,
    addresses: dict[str, str | None],
    workers: list[dict[str, str | int | None]] | None = None,
) -> None:
    """Write the addresses bound, the process id, and the same of any workers, as JSON.

    Raises:
        ConfigError: if it cannot be written.
    """
    more = {} if workers is None else {"workers": workers}
    content = json.dumps({**addresses, "pid": os.getpid(), **more}) + "\n"
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(path)
    except OSError as error:
        raise ConfigError(f"--ready-file {path}: {error.strerror or error}") from error

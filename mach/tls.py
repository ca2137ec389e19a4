"""Certificates and keys: PEM files, checked when they are read, and gRPC credentials of them.

A mistake in them is told in a sentence when a server or a client starts; gRPC itself would
only fail handshakes.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from mach.errors import ConfigError
from mach.reloading import Reloaded

__all__ = ["ClientTls", "Pair", "ServerTls", "Tls", "check_pair", "read_ca", "read_pair"]


@dataclass(frozen=True)
class Pair:
    """A certificate, with what leads to its authority, and its key.

    Attributes:
        certificate: PEM, the certificate itself first.
        key: PEM, without a passphrase.
        expires: seconds since 1970 at which the certificate expires.
    """

    certificate: bytes
    key: bytes
    expires: float

    def __repr__(self) -> str:  # a key has no place in a log line
        return f"Pair(expires={self.expires:.0f})"


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} {path}: {error.strerror or error}") from error


def check_pair(certificate: object, key: object, names: tuple[str, str]) -> None:
    """A certificate and its key are given together or not at all.

    Raises:
        ConfigError: if one is missing.
    """
    if (certificate is None) != (key is None):
        given, missing = names if key is None else names[::-1]
        raise ConfigError(f"{given} needs {missing} as well")


def read_pair(certificate: Path, key: Path, names: tuple[str, str]) -> Pair:
    """Read a certificate and its key.

    Args:
        certificate: a PEM file, the certificate itself first, then those that signed it.
        key: a PEM file.
        names: what the two files are called in messages.

    Raises:
        ConfigError: if a file cannot be read or is no PEM, the key has a passphrase or is
            another certificate's, or the certificate has expired.
    """
    # Here, so that a client without TLS does not load it.
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        load_pem_private_key,
    )

    data, secret = _read(certificate, names[0]), _read(key, names[1])
    parsed = _parse(data, certificate, names[0])
    try:
        private: Any = load_pem_private_key(secret, None)
    except TypeError:
        raise ConfigError(f"{names[1]} {key}: has a passphrase; give a key without one") from None
    except Exception:  # the library names many; none may carry the key's text into a message
        raise ConfigError(f"{names[1]} {key}: is not a private key in PEM form") from None
    if private.public_key() != parsed.public_key():
        raise ConfigError(f"{names[1]} {key}: is not the key of the certificate {certificate}")
    expires = parsed.not_valid_after_utc
    if expires <= datetime.datetime.now(datetime.UTC):
        raise ConfigError(f"{names[0]} {certificate}: expired at {expires:%Y-%m-%d %H:%M} UTC")
    return Pair(data, secret, expires.timestamp())


def read_ca(path: Path, name: str) -> bytes:
    """Read certificates of authorities.

    Raises:
        ConfigError: if the file cannot be read or holds none.
    """
    data = _read(path, name)
    _parse(data, path, name)
    return data


def _parse(data: bytes, path: Path, name: str) -> Any:
    """The first certificate; all are looked at."""
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        return load_pem_x509_certificates(data)[0]
    except Exception:
        raise ConfigError(f"{name} {path}: is not a certificate in PEM form") from None


@dataclass(frozen=True)
class _ServerFiles:
    pair: Pair
    client_ca: bytes | None


class ServerTls:
    """What a server shows its callers, and whom it asks for a certificate in return.

    Attributes:
        files: what was read; a handshake uses the latest, connections that exist go on.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files.

        Args:
            certificate: see :func:`read_pair`.
            key: of the certificate.
            client_ca: authorities one of which must have signed a caller's certificate; where
                not given callers need none.

        Raises:
            ConfigError: if a file cannot be used.
        """

        def load() -> _ServerFiles:
            pair = read_pair(certificate, key, ("--tls-certificate", "--tls-key"))
            ca = None if client_ca is None else read_ca(client_ca, "--tls-client-ca")
            return _ServerFiles(pair, ca)

        paths = [certificate, key, *([] if client_ca is None else [client_ca])]
        self.files = Reloaded("tls", paths, load)

    def credentials(self) -> grpc.ServerCredentials:
        """For one port."""
        used = self.files.value

        def configuration() -> grpc.ServerCertificateConfiguration:
            pair = used.pair
            return grpc.ssl_server_certificate_configuration(
                [(pair.key, pair.certificate)], used.client_ca
            )

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            # gRPC asks before each handshake, on a thread of its own; None: as before.
            nonlocal used
            latest = self.files.value
            if latest is used:
                return None
            used = latest
            return configuration()

        return grpc.dynamic_ssl_server_credentials(
            configuration(),
            fetch,  # type: ignore[arg-type] # the stubs forget None
            require_client_authentication=used.client_ca is not None,
        )


@dataclass(frozen=True)
class Tls:
    """How a client knows a server, and the server the client; files are PEM.

    Attributes:
        ca: authorities one of which must have signed the server's certificate; those that gRPC
            brings, the public ones, where not given.
        certificate: the client's own, where the server asks for one (mutual TLS), and
        key: its key.
        server_name: the name that the server's certificate must have, where that is not the one
            in the address.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str = ""

    @property
    def options(self) -> list[tuple[str, Any]]:
        """Options of a channel."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []


@dataclass(frozen=True)
class _ClientFiles:
    ca: bytes | None
    pair: Pair | None


class ClientTls:
    """The files of a :class:`Tls`.

    Attributes:
        files: what was read; a channel keeps what it was opened with.
        server_name: see :class:`Tls`.
        options: of a channel, for that name.
    """

    def __init__(
        self,
        tls: Tls,
        names: tuple[str, str, str] = ("tls.ca", "tls.certificate", "tls.key"),
        name: str = "tls",
    ) -> None:
        """Read the files.

        Args:
            tls: which.
            names: what the three files are called in messages.
            name: of the three together, see :class:`Reloaded`.

        Raises:
            ConfigError: if a file cannot be used, or one of certificate and key is missing.
        """
        check_pair(tls.certificate, tls.key, names[1:])
        self.options = tls.options
        self.server_name = tls.server_name

        def load() -> _ClientFiles:
            pair = None
            if tls.certificate is not None and tls.key is not None:
                pair = read_pair(Path(tls.certificate), Path(tls.key), names[1:])
            ca = None if tls.ca is None else read_ca(Path(tls.ca), names[0])
            return _ClientFiles(ca, pair)

        paths = [Path(path) for path in (tls.ca, tls.certificate, tls.key) if path is not None]
        self.files = Reloaded(name, paths, load)

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel opened now."""
        files = self.files.value
        if files.pair is None:
            return grpc.ssl_channel_credentials(files.ca)
        return grpc.ssl_channel_credentials(files.ca, files.pair.key, files.pair.certificate)

    def expires(self) -> float | None:
        """When the certificate expires, in seconds since 1970; None where there is none."""
        pair = self.files.value.pair
        return None if pair is None else pair.expires

"""Options of commands that talk to a fleet: certificates and the token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mach.tls import Tls

__all__ = [
    "TlsCaOption",
    "TlsCertificateOption",
    "TlsKeyOption",
    "TlsOption",
    "TlsServerNameOption",
    "TokenFileOption",
    "make_tls",
    "read_token",
]

TlsOption = Annotated[
    bool,
    typer.Option("--tls", envvar="MACH_TLS", help="TLS, with the public authorities."),
]
TlsCaOption = Annotated[
    Path | None,
    typer.Option(envvar="MACH_TLS_CA", help="TLS, with the authorities in this PEM file."),
]
TlsCertificateOption = Annotated[
    Path | None,
    typer.Option(
        envvar="MACH_TLS_CERTIFICATE", help="Certificate to show (mutual TLS), a PEM file."
    ),
]
TlsKeyOption = Annotated[
    Path | None, typer.Option(envvar="MACH_TLS_KEY", help="Its key, a PEM file.")
]
TlsServerNameOption = Annotated[
    str,
    typer.Option(
        envvar="MACH_TLS_SERVER_NAME",
        help="The name that the fleet's certificate must have, where not the address's.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        envvar="MACH_TOKEN_FILE",
        help="A file with the bearer token to send; or set MACH_TOKEN to the token itself.",
    ),
]


def make_tls(
    tls: bool, ca: Path | None, certificate: Path | None, key: Path | None, server_name: str
) -> Tls | None:
    """What the options ask for; None for plain text.

    Raises:
        ConfigError: if an option needs ``--tls`` or ``--tls-ca``.
    """
    from mach.errors import ConfigError
    from mach.tls import Tls, check_pair

    check_pair(certificate, key, ("--tls-certificate", "--tls-key"))
    if not tls and ca is None:
        for flag, value in (("--tls-certificate", certificate), ("--tls-server-name", server_name)):
            if value:
                raise ConfigError(f"{flag} needs --tls or --tls-ca as well")
        return None
    return Tls(ca, certificate, key, server_name)


def read_token(path: Path | None) -> str | None:
    """The token in a file, or in ``MACH_TOKEN``; a flag of its own would show it in ``ps``.

    Raises:
        ConfigError: if the file cannot be read or is empty.
    """
    import os

    from mach.errors import ConfigError

    if path is None:
        return os.environ.get("MACH_TOKEN") or None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise ConfigError(f"--token-file {path}: {reason}") from None
    if not token:
        raise ConfigError(f"--token-file {path}: is empty")
    return token

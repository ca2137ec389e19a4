"""What every server can be told, on the command line or by environment variables."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from mach.errors import ConfigError
from mach.tls import check_pair

__all__ = [
    "CommaSeparatedInts",
    "CommaSeparatedStrings",
    "ServingSettings",
    "load_settings",
    "split_address",
]

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")


def split_address(address: str) -> tuple[str, int]:
    """Host (IPv6 without its brackets) and port of ``HOST:PORT``.

    Raises:
        ValueError: if it is not of that form or the port is above 65535.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return match["host"].strip("[]"), int(match["port"])


def _split_commas(value: object) -> object:
    """``"1,2"`` and ``["1,2", "3"]`` as a list of strings; anything else as it is."""
    parts = [value] if isinstance(value, str) else value
    if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
        return [item.strip() for part in parts for item in part.split(",") if item.strip()]
    return value


#: Lists that a flag or a variable writes ``1,2,3``; a flag may also be repeated.
CommaSeparatedInts = Annotated[list[int], NoDecode, BeforeValidator(_split_commas)]
CommaSeparatedStrings = Annotated[list[str], NoDecode, BeforeValidator(_split_commas)]


class ServingSettings(BaseSettings):
    """What both servers share; a server's own settings derive from it.

    Each field is a flag (``--max-message-bytes``) and an environment variable (the server's
    prefix and the field's name, ``MACH_SHARD_MAX_MESSAGE_BYTES``); a flag wins.
    """

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
        cli_ignore_unknown_args=False,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    listen: str = "127.0.0.1:50051"
    """HOST:PORT to serve gRPC on, or unix:PATH. Port 0 takes a free one. All interfaces
    only if told so: 0.0.0.0:PORT."""
    metrics_listen: str | None = None
    """HOST:PORT to serve Prometheus metrics on, at /metrics; none where not given."""
    admin_listen: str | None = None
    """HOST:PORT or unix:PATH to serve mach.v1.AdminService on, which loads and switches bundles;
    none where not given. Whoever may call it decides what is served: keep it to yourself, or give
    --tokens or --tls-client-ca."""
    bundle_root: Path | None = None
    """The directory that the admin service may load bundles from; that which holds the first
    bundle where not given."""
    health_listen: str | None = None
    """HOST:PORT or unix:PATH to serve grpc.health.v1 alone on, in plain text and without tokens:
    for probes that speak no TLS, such as Kubernetes'; none where not given."""
    tls_certificate: Path | None = None
    """A PEM file with the server's certificate and those that lead to its authority: every gRPC
    port but --health-listen then speaks TLS only."""
    tls_key: Path | None = None
    """A PEM file with the certificate's key, without a passphrase."""
    tls_client_ca: Path | None = None
    """A PEM file with the authorities one of which must have signed a caller's certificate
    (mutual TLS); where not given callers need none."""
    tokens: Path | None = None
    """The file of `mach token`: calls then need a bearer token that it knows. Health needs none.
    A shard server asks for tokens on its admin port and for reflection, not for predictions: it
    knows aggregators by their certificates."""
    reload_seconds: float = Field(5.0, ge=0.05, le=3600)
    """How often certificate and token files are looked at; what changed is taken up without a
    restart, what is wrong is refused and what was there stays."""
    ready_file: Path | None = None
    """Write the addresses bound to this file, as JSON with listen, metrics, admin, health and
    pid, once the ports are open. That the server can answer is told by its health, not by the
    file."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log lines written."""
    log_format: Literal["text", "json"] = "text"
    """Log lines for people, or one JSON object a line."""
    drain_seconds: float = Field(20.0, ge=0, le=3600)
    """After SIGTERM or SIGINT, how long requests in flight may take before they are cancelled.
    A second signal cancels them at once."""
    max_message_bytes: int = Field(64 << 20, ge=1024, le=(1 << 31) - 1)
    """The largest gRPC message received or sent."""
    max_concurrent_rpcs: int = Field(4096, ge=1)
    """Calls in flight beyond which new ones are refused with RESOURCE_EXHAUSTED."""
    max_waiting_calls: int = Field(1000, ge=1, le=1_000_000)
    """Calls that have arrived and were not yet looked at, beyond which gRPC drops new ones, which
    takes next to no time: their callers see CANCELLED at once."""
    max_connection_age_seconds: float = Field(0.0, ge=0, le=86_400)
    """Ask a client to connect anew after so long, give or take a tenth: behind a load balancer
    that balances connections, only so do new servers get their share. 0 never does."""
    reflection: bool = True
    """Offer gRPC server reflection, by which tools discover the services."""

    @field_validator("listen", "admin_listen", "health_listen")
    @classmethod
    def _listen_is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("unix:"):
            split_address(value)
        return value

    @field_validator("metrics_listen")
    @classmethod
    def _metrics_is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        try:
            check_pair(self.tls_certificate, self.tls_key, ("--tls-certificate", "--tls-key"))
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("--tls-client-ca needs --tls-certificate and --tls-key as well")
        return self


S = TypeVar("S", bound=ServingSettings)


def load_settings(cls: type[S], argv: Sequence[str] | None = None, *, program: str) -> S:
    """Read flags and environment variables.

    ``--help`` prints the flags and exits with 0, as argparse does.

    Args:
        cls: the server's settings.
        argv: the flags; those of this process where not given.
        program: the name shown by ``--help``.

    Raises:
        ConfigError: one sentence that names the flag at fault.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    build: Callable[..., S] = cls
    try:
        return build(_cli_parse_args=arguments, _cli_prog_name=program)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(_sentence(cls, first)) from error
    except SettingsError as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{cause}".removeprefix("error parsing CLI: ")) from error


def _sentence(cls: type[ServingSettings], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    if not location:
        return str(error["msg"]).removeprefix("Value error, ")
    flag = "--" + location[0].replace("_", "-")
    variable = f"{cls.model_config.get('env_prefix', '')}{location[0]}".upper()
    if error["type"] == "missing":
        return f"{flag} is required (or the environment variable {variable})"
    message = str(error["msg"]).removeprefix("Value error, ")
    got = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"{flag} ({variable}): {message}{got}"

"""Bearer tokens, and the file of their hashes.

A token is ``mach_ID_SECRET``: the id finds its entry, the secret is 256 random bits. The file
holds SHA-256 hashes. A slow or salted hash is for passwords, which can be guessed; nobody guesses
256 random bits, and a server that checks a token at every call must not take long.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from mach.errors import ConfigError, InvalidInput
from mach.files import write_atomically

__all__ = [
    "Scope",
    "Token",
    "TokenFile",
    "create_token",
    "hash_token",
    "id_of",
    "read_tokens",
    "revoke_token",
]

#: What a token allows: searches, or loading and switching bundles.
Scope = Literal["search", "admin"]

_TOKEN = re.compile(r"mach_([0-9a-f]{8})_[0-9A-Za-z_-]{43}")


class Token(BaseModel):
    """What is known of a token; not the token itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{8}$")
    """Part of the token; not secret."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Who uses it; shown in log lines and metrics."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the whole token."""
    scopes: tuple[Scope, ...] = Field(("search",), min_length=1)
    """What it allows."""
    rate: float | None = Field(None, gt=0, le=1e9, allow_inf_nan=False)
    """Queries a second, on average, that one server answers; no limit where not given."""
    burst: int | None = Field(None, ge=1, le=10**9)
    """Queries at once that it answers where none came before; a second's worth by default."""
    created: AwareDatetime
    """When it was made."""
    expires: AwareDatetime | None = None
    """From when on it is refused; never where not given."""

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> Token:
        if self.burst is not None and self.rate is None:
            raise ValueError("a burst needs a rate")
        return self


class TokenFile(BaseModel):
    """All tokens that a server knows; with none it refuses everybody."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: tuple[Token, ...] = ()

    @model_validator(mode="after")
    def _unique(self) -> TokenFile:
        for field in ("id", "name"):
            values = [getattr(token, field) for token in self.tokens]
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"the {field} {value} is there twice")
        return self


def id_of(token: str) -> str | None:
    """The id in a token; None where it is none of ours."""
    match = _TOKEN.fullmatch(token)
    return match and match[1]


def hash_token(token: str) -> bytes:
    """SHA-256 of a token."""
    return hashlib.sha256(token.encode()).digest()


def read_tokens(path: Path, name: str = "--tokens") -> TokenFile:
    """Read a token file.

    Args:
        path: where it is.
        name: what it is called in messages.

    Raises:
        ConfigError: if it cannot be read or is not one.
    """
    try:
        fields = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{name} {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        raise ConfigError(f"{name} {path}: is not valid JSON") from None
    try:
        return TokenFile.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "content"
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"{name} {path}: {field}: {message}") from None


@contextmanager
def _locked(path: Path) -> Iterator[TokenFile]:
    """The file as it is, which no other process changes meanwhile; empty where missing."""
    try:
        directory = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield read_tokens(path, "the token file") if path.exists() else TokenFile()
    finally:
        os.close(directory)


def _write(path: Path, tokens: Sequence[Token]) -> None:
    content = TokenFile(tokens=tuple(tokens)).model_dump(mode="json", exclude_none=True)
    # A file that exists keeps its owner and permissions: a server may run as another user. A link
    # to it stays one.
    path, mode, owner = path.resolve(), 0o600, None
    if path.exists():
        status = path.stat()
        mode, owner = status.st_mode & 0o777, (status.st_uid, status.st_gid)
    write_atomically(path, json.dumps(content, indent=2) + "\n", mode=mode, owner=owner)


def create_token(
    path: Path,
    name: str,
    *,
    scopes: Sequence[Scope] = ("search",),
    rate: float | None = None,
    burst: int | None = None,
    expires: datetime | None = None,
) -> str:
    """Add a token to a file, which is made where missing.

    Args:
        path: the token file.
        name: who will use it; one that the file does not have yet.
        scopes: what it allows.
        rate: queries a second that one server answers, on average; None for no limit.
        burst: queries at once; a second's worth by default.
        expires: when it expires, with its time zone; None for never.

    Returns:
        The token. It is kept nowhere else.

    Raises:
        InvalidInput: if an argument is out of its range or the name is taken.
        ConfigError: if the file cannot be read or is not a token file.
    """
    with _locked(path) as known:
        if any(token.name == name for token in known.tokens):
            raise InvalidInput("name", f"{path} has a token named {name} already")
        number = secrets.token_hex(4)
        while any(token.id == number for token in known.tokens):
            number = secrets.token_hex(4)
        token = f"mach_{number}_{secrets.token_urlsafe(32)}"
        try:
            entry = Token(
                id=number,
                name=name,
                sha256=hash_token(token).hex(),
                scopes=tuple(dict.fromkeys(scopes)),
                rate=rate,
                burst=burst,
                created=datetime.now(UTC).replace(microsecond=0),
                expires=expires,
            )
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0]) if first["loc"] else "burst"
            raise InvalidInput(field, str(first["msg"]).removeprefix("Value error, ")) from None
        _write(path, [*known.tokens, entry])
    return token


def revoke_token(path: Path, name: str) -> Token:
    """Take a token, known by its name or id, out of a file; servers refuse it from then on.

    Raises:
        InvalidInput: if there is none.
        ConfigError: if the file cannot be read or is not a token file.
    """
    with _locked(path) as known:
        for token in known.tokens:
            if name in (token.name, token.id):
                _write(path, [other for other in known.tokens if other is not token])
                return token
    raise InvalidInput("name", f"{path} has no token {name}")

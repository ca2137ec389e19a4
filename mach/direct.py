"""Asking servers of one's own, whatever proxy the environment names.

What a proxy is for is elsewhere, and its loopback is another.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from http.client import HTTPResponse

__all__ = ["DIRECT", "is_this_machine", "open_url"]

#: Options of a gRPC channel.
DIRECT = (("grpc.enable_http_proxy", 0),)

_LOOPBACK = re.compile(
    r"(dns:(//[^/]*/)?|ipv[46]:|passthrough:/{0,3})?(localhost|127\.[\d.]+|\[::1\])(:.*)?",
    re.IGNORECASE,
)


def is_this_machine(address: str) -> bool:
    """Whether a gRPC target is a loopback address."""
    return _LOOPBACK.fullmatch(address) is not None


def open_url(url: str, timeout: float) -> HTTPResponse:
    """As :func:`urllib.request.urlopen`, within ``timeout`` seconds."""
    from urllib.request import ProxyHandler, build_opener  # noqa: PLC0415 - clients need it not

    return cast("HTTPResponse", build_opener(ProxyHandler({})).open(url, timeout=timeout))

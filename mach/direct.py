"""Asking servers of one's own, whatever proxy the environment names.

What a proxy is for is elsewhere, and its loopback is another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from http.client import HTTPResponse

__all__ = ["DIRECT", "open_url"]

#: Options of a gRPC channel.
DIRECT = (("grpc.enable_http_proxy", 0),)


def open_url(url: str, timeout: float) -> HTTPResponse:
    """As :func:`urllib.request.urlopen`, within ``timeout`` seconds."""
    from urllib.request import ProxyHandler, build_opener  # noqa: PLC0415 - clients need it not

    return cast("HTTPResponse", build_opener(ProxyHandler({})).open(url, timeout=timeout))

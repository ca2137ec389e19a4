"""Opening gRPC channels to shards, and reading what goes wrong on them."""

from __future__ import annotations

import grpc
import grpc.aio

from mach.direct import DIRECT
from mach.errors import MachError, from_status
from mach.serving.options import channel_options

__all__ = ["error_of", "open_channel"]


def open_channel(
    address: str,
    *,
    max_message_bytes: int,
    credentials: grpc.ChannelCredentials | None = None,
    server_name: str = "",
) -> grpc.aio.Channel:
    """A channel to one shard address; it connects when it is first used.

    The fan-out chooses replicas and retries by itself, so gRPC's own retries are off, and each
    channel has its own connection, even where two channels have one address.

    Args:
        address: HOST:PORT or unix:PATH.
        max_message_bytes: the largest message sent or received.
        credentials: for TLS; plain text where not given.
        server_name: the name that the shard's certificate must have; the host of ``address``
            where empty.
    """
    options = [
        *channel_options(max_message_bytes=max_message_bytes),
        ("grpc.enable_retries", 0),
        *DIRECT,
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options)
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return grpc.aio.secure_channel(address, credentials, options)


def error_of(error: grpc.aio.AioRpcError) -> MachError:
    """The error of this project for a failed call."""
    return from_status(error.code(), error.details() or "")

"""gRPC options that servers and the channels to them must agree on."""

from __future__ import annotations

__all__ = ["channel_options", "server_options"]

_KEEPALIVE_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000

Options = list[tuple[str, int | str]]


def server_options(
    *,
    max_message_bytes: int,
    max_waiting_calls: int = 1000,
    max_concurrent_streams: int | None = None,
    reuse_port: bool = False,
    max_connection_age: float = 0.0,
    connection_grace: float = 20.0,
) -> Options:
    """Options of a server.

    A second server on the same port is an error unless ``reuse_port``: gRPC's default would
    let both take turns unnoticed.

    Args:
        max_message_bytes: the largest message received or sent.
        max_waiting_calls: calls that have arrived and that the event loop has not yet taken up,
            which it does one at a time. Beyond, gRPC's core drops more and more of what comes,
            an eighth further all of it; their callers see CANCELLED at once. That costs a
            fraction of a refusal in Python, so that an overload leaves time for answers.
        max_concurrent_streams: calls at once on a connection.
        reuse_port: whether other processes may listen on the same port.
        max_connection_age: seconds, give or take a tenth, after which a client is asked to
            connect anew; 0 for never.
        connection_grace: seconds that calls on such a connection may still take.
    """
    options: Options = [
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.server.max_pending_requests", max_waiting_calls),
        ("grpc.server.max_pending_requests_hard_limit", -(-max_waiting_calls * 9 // 8)),
        ("grpc.keepalive_time_ms", 2 * _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Less than what channel_options() pings at, or the server hangs up on its clients.
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ]
    if max_connection_age:
        options += [
            ("grpc.max_connection_age_ms", int(max_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", int(connection_grace * 1000)),
        ]
    if max_concurrent_streams is not None:
        options.append(("grpc.max_concurrent_streams", max_concurrent_streams))
    return options


def channel_options(*, max_message_bytes: int, keepalive_ms: int = _KEEPALIVE_MS) -> Options:
    """Options of a channel to such a server.

    A peer that vanished without a word is noticed within ``keepalive_ms`` and 10 s.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]

"""Clients are moved on without a call that fails."""

from __future__ import annotations

import asyncio

import grpc

from mach.serving import channel_options, server_options


class Echo(grpc.GenericRpcHandler):
    def __init__(self):
        self.peers = set()

    def service(self, handler_call_details):
        async def answer(request, context):
            self.peers.add(context.peer())
            await asyncio.sleep(float(request))
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


async def ask(age: float, delays: list[float]) -> set[str]:
    """The connections over which calls arrive that take ``delays`` seconds one after another."""
    server = grpc.aio.server(
        options=server_options(max_message_bytes=4096, max_connection_age=age, connection_grace=30)
    )
    echo = Echo()
    server.add_generic_rpc_handlers([echo])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    options = channel_options(max_message_bytes=4096)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call = channel.unary_unary("/test/Echo")
        for delay in delays:
            assert await call(str(delay).encode(), timeout=10) == str(delay).encode()
    await server.stop(0)
    return echo.peers


async def test_old_connections_are_left_and_no_call_fails():
    assert len(await ask(0.3, [0.05] * 20)) > 1


async def test_a_call_in_flight_outlives_its_connections_age():
    await ask(0.2, [1.0])


async def test_connections_last_where_no_age_is_set():
    assert len(await ask(0.0, [0.05] * 10)) == 1

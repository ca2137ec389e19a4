"""Calls that pile up before the event loop has taken them are dropped at once, not kept."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

from mach.client.calls import read_error
from mach.errors import Unavailable
from mach.serving import server_options


async def burst(calls: int, stall: float, max_waiting_calls: int) -> list[tuple[object, float]]:
    """The codes of calls that all arrive while the event loop stands still, and their seconds."""

    async def answer(request, context):
        return request

    class Echo(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server(
        options=server_options(max_message_bytes=4096, max_waiting_calls=max_waiting_calls)
    )
    server.add_generic_rpc_handlers([Echo()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, ThreadPoolExecutor(calls) as pool:
        call = channel.unary_unary("/test/Echo")

        def one() -> tuple[object, float]:
            started = time.monotonic()
            try:
                call(b"", timeout=30)
            except grpc.RpcError as error:
                return error.code(), time.monotonic() - started
            return grpc.StatusCode.OK, time.monotonic() - started

        await asyncio.get_running_loop().run_in_executor(pool, one)  # connected
        sent = [pool.submit(one) for _ in range(calls)]
        time.sleep(stall)  # noqa: ASYNC251 - the stall that is tested
        found = await asyncio.gather(*map(asyncio.wrap_future, sent))
    await server.stop(0)
    return found


async def test_what_waits_in_vain_is_told_at_once():
    found = await burst(calls=40, stall=1.5, max_waiting_calls=8)
    dropped = [seconds for code, seconds in found if code is grpc.StatusCode.CANCELLED]
    answered = [code for code, _ in found if code is grpc.StatusCode.OK]
    assert len(dropped) + len(answered) == 40
    assert len(answered) >= 8 and len(dropped) >= 40 - 2 * 8 - 2
    assert max(dropped) < 1.4  # while the loop stood still


async def test_a_burst_is_answered():
    assert {code for code, _ in await burst(40, 0.5, 64)} == {grpc.StatusCode.OK}


def test_the_client_says_what_happened():
    class Failed(grpc.RpcError):
        code = staticmethod(lambda: grpc.StatusCode.CANCELLED)
        details = staticmethod(lambda: "CANCELLED")
        trailing_metadata = staticmethod(tuple)

    found = read_error(Failed())
    assert isinstance(found, Unavailable)
    assert "dropped the call unread" in str(found)

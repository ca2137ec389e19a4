"""What a restart is decided by, apart from what traffic is decided by."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mach.serving import LIVENESS, Health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


MOST_WATCHES = 3


@pytest.fixture
async def health():
    """A health service with one name, and a function that asks it over gRPC."""
    servicer = Health(["some.Service"], max_watches=MOST_WATCHES)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def ask(name):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            return answer.status

        yield servicer, ask, stub
    await server.stop(0)


async def test_a_process_is_alive_whether_it_is_ready_or_not(health):
    servicer, ask, _ = health
    for change, expected in (
        (lambda: None, NOT_SERVING),
        (lambda: servicer.set_serving(True), SERVING),
        (lambda: servicer.set_serving(False), NOT_SERVING),
        (servicer.close, NOT_SERVING),
    ):
        change()
        assert await ask("") == expected
        assert await ask("some.Service") == expected
        assert await ask(LIVENESS) == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await ask("another.Service")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watch_of_liveness_ends_with_the_drain(health):
    servicer, _, stub = health
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=LIVENESS), timeout=5)
    assert (await watch.read()).status == SERVING
    servicer.close()
    assert await watch.read() is grpc.aio.EOF


async def test_watches_are_bounded_and_leave_room_for_probes(health):
    _, ask, stub = health
    request = health_pb2.HealthCheckRequest(service="")
    watches = [stub.Watch(request, timeout=20) for _ in range(MOST_WATCHES)]
    for watch in watches:
        assert (await watch.read()).status == NOT_SERVING
    refused = stub.Watch(request, timeout=20)
    assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await ask(LIVENESS) == SERVING
    watches[0].cancel()
    async with asyncio.timeout(10):
        while True:  # once the server knows that one has gone
            another = stub.Watch(request, timeout=20)
            with contextlib.suppress(grpc.aio.AioRpcError):
                if await another.read() is not grpc.aio.EOF:
                    break
    for watch in (another, *watches[1:]):
        watch.cancel()

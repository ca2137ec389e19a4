"""Both gRPC transports against a scripted shard server."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from aggregator.service import connect
from aggregator.transport import InProcessTransport, Payload
from aggregator.transport.stream import _frame
from mach.errors import (
    InvalidInput,
    MachError,
    Overloaded,
    ServiceError,
    Unavailable,
    VersionMismatch,
)
from mach.v1 import shard_pb2, shard_pb2_grpc

GRPC = ["stream", "unary"]


class ScriptedShard(shard_pb2_grpc.ShardServiceServicer):
    """Answers as a shard would after ``pause``, or with ``error``, and notes what it sees."""

    def __init__(self, loaded):
        self.inner = InProcessTransport(loaded)
        self.error = None
        self.pause = asyncio.Event()
        self.pause.set()
        self.seen = []
        self.timeouts = []
        self.cancelled = []
        self.ended = 0

    async def DescribeShard(self, request, context):
        inner = await self.inner.describe(1)
        return shard_pb2.DescribeShardResponse(
            bundle_version=inner.bundle_versions[0],
            repetitions=[3, 1, 1],
            num_buckets=inner.num_buckets,
            num_features=inner.num_features,
            provider="cpu",
            max_batch_size=77,
        )

    def compute(self, request):
        self.seen.append(request)
        from mach.wire import sparse_from_proto

        features = sparse_from_proto(request.features, 10**6)
        payload = Payload(features, request.bundle_version, request.encoding)
        return self.inner._run(payload, tuple(request.repetitions))

    async def Predict(self, request, context):
        self.timeouts.append(context.time_remaining())
        try:
            await self.pause.wait()
        except asyncio.CancelledError:
            self.cancelled.append(0)
            raise
        if self.error is not None:
            await context.abort(*self.error)
        return self.compute(request)

    async def PredictStream(self, requests, context):
        async def reply(message):
            self.timeouts.append(message.timeout_us / 1e6)
            await self.pause.wait()
            if self.error is not None:
                code, text = self.error
                answer = shard_pb2.PredictStreamResponse(
                    id=message.id, code=code.value[0], message=text
                )
            else:
                answer = shard_pb2.PredictStreamResponse(
                    id=message.id, response=self.compute(message.request)
                )
            async with writing:
                await context.write(answer)

        tasks, writing = set(), asyncio.Lock()
        try:
            async for message in requests:
                if message.cancel:
                    self.cancelled.append(message.id)
                else:
                    tasks.add(asyncio.create_task(reply(message)))
        finally:
            self.ended += 1
            for task in tasks:
                task.cancel()


@asynccontextmanager
async def scripted(loaded, kind):
    servicer = ScriptedShard(loaded)
    server = grpc.aio.server()
    shard_pb2_grpc.add_ShardServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = connect(f"127.0.0.1:{port}", transport=kind, max_message_bytes=1 << 20)
    try:
        yield servicer, server, transport
    finally:
        await transport.close()
        await server.stop(0)


@pytest.fixture
def payload(served, titles):
    return Payload(served.featurizer.batch(titles[:3]), served.version, shard_pb2.ENCODING_UINT8)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def start(transport, payload, repetitions=(1,), seconds=5.0):
    future = asyncio.get_running_loop().create_future()
    withdraw = transport.predict(payload, repetitions, seconds, future.set_result)
    assert not future.done()
    return future, withdraw


@pytest.mark.parametrize("kind", GRPC)
async def test_describe_and_predict(load, payload, kind):
    loaded = load(1, 3)
    async with scripted(loaded, kind) as (servicer, _, transport):
        description = await transport.describe(5.0)
        assert description.repetitions == (1, 3)
        assert description.max_batch_size == 77
        answer, _ = start(transport, payload)
        expected = InProcessTransport(loaded)._run(payload, (1,))
        received = await answer
        assert received.repetitions == expected.repetitions
        assert received.num_queries == 3
        whole, _ = start(transport, payload, ())
        assert [part.repetition for part in (await whole).repetitions] == [1, 3]
        assert servicer.seen[0].repetitions == [1]
        assert 4 < servicer.timeouts[0] < 5.1


@pytest.mark.parametrize("kind", GRPC)
async def test_many_at_once_are_told_apart(served, load, titles, kind):
    async with scripted(load(1, 3), kind) as (_, _, transport):
        payloads = [
            Payload(served.featurizer.batch(titles[: n + 1]), served.version, 3) for n in range(40)
        ]
        futures = [start(transport, p)[0] for p in payloads]
        for number, answer in enumerate(await asyncio.gather(*futures)):
            assert answer.num_queries == number + 1


@pytest.mark.parametrize("kind", GRPC)
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.FAILED_PRECONDITION, VersionMismatch),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.INTERNAL, MachError),
    ],
)
async def test_a_status_is_an_error_and_the_next_message_goes_through(
    load, payload, kind, code, error
):
    async with scripted(load(1, 3), kind) as (servicer, _, transport):
        servicer.error = (code, "field: what is wrong")
        future, _ = start(transport, payload)
        received = await future
        assert type(received) is error
        assert str(received) == "field: what is wrong"
        servicer.error = None
        future, _ = start(transport, payload)
        assert (await future).num_queries == 3


async def test_an_unknown_status_is_an_error(load, payload):
    class Odd:
        value = (999, "odd")

    async with scripted(load(1, 3), "stream") as (servicer, _, transport):
        servicer.error = (Odd, "?")
        future, _ = start(transport, payload)
        assert isinstance(await future, MachError)


@pytest.mark.parametrize("kind", GRPC)
async def test_what_is_withdrawn_is_cancelled_and_not_answered(load, payload, kind):
    async with scripted(load(1, 3), kind) as (servicer, _, transport):
        servicer.pause.clear()
        future, withdraw = start(transport, payload)
        await until(lambda: servicer.timeouts)
        withdraw()
        await until(lambda: servicer.cancelled)
        servicer.pause.set()
        other, _ = start(transport, payload)
        await other
        assert not future.done()


async def test_what_is_withdrawn_or_expired_before_it_is_sent_never_is(load, payload):
    async with scripted(load(1, 3), "stream") as (servicer, _, transport):
        first, _ = start(transport, payload)
        await first
        _, withdraw = start(transport, payload)
        withdraw()
        start(transport, payload, seconds=0.0)
        last, _ = start(transport, payload)
        await last
        assert len(servicer.seen) == 2
        assert servicer.cancelled == []


@pytest.mark.parametrize("kind", GRPC)
async def test_a_server_that_stops_fails_what_is_in_flight(load, payload, kind):
    async with scripted(load(1, 3), kind) as (servicer, server, transport):
        broken = []
        transport.on_broken = broken.append
        await transport.describe(5.0)
        servicer.pause.clear()
        futures = [start(transport, payload)[0] for _ in range(3)]
        await until(lambda: len(servicer.timeouts) == 3)
        await server.stop(0)
        for answer in await asyncio.wait_for(asyncio.gather(*futures), 5):
            assert isinstance(answer, Unavailable)
        if kind == "stream":
            assert len(broken) == 1
        future, _ = start(transport, payload)
        assert isinstance(await asyncio.wait_for(future, 10), ServiceError)
        with pytest.raises(ServiceError):
            await transport.describe(0.5)


async def test_an_idle_stream_tells_that_it_broke(load):
    async with scripted(load(1, 3), "stream") as (_, server, transport):
        broken = asyncio.Event()
        transport.on_broken = lambda _: broken.set()
        await transport.describe(5.0)
        await asyncio.sleep(0.05)
        assert not broken.is_set()
        await server.stop(0)
        await asyncio.wait_for(broken.wait(), 5)


@pytest.mark.parametrize("kind", GRPC)
async def test_closing_fails_what_is_in_flight_and_ends_the_stream(load, payload, kind):
    async with scripted(load(1, 3), kind) as (servicer, _, transport):
        servicer.pause.clear()
        future, _ = start(transport, payload)
        await until(lambda: servicer.timeouts)
        await transport.close()
        assert isinstance(await asyncio.wait_for(future, 5), MachError)
        await until(lambda: kind == "unary" or servicer.ended)


@pytest.mark.parametrize("kind", GRPC)
async def test_a_message_over_the_limit_is_an_error(load, served, titles, kind):
    async with scripted(load(1, 3), kind) as (_, _, transport):
        huge = Payload(served.featurizer.batch([" ".join(titles)] * 300), served.version, 3)
        assert len(huge.message((1,))) > 1 << 20
        future, _ = start(transport, huge)
        assert isinstance(await asyncio.wait_for(future, 5), MachError)


@pytest.mark.parametrize("kind", GRPC)
async def test_a_description_that_cannot_be_decoded_is_an_error(kind, caplog):
    async def describe(request, context):
        return b"\xff\xff\xff"

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(describe)
    methods = grpc.method_handlers_generic_handler(
        "mach.v1.ShardService", {"DescribeShard": handler}
    )
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = connect(f"127.0.0.1:{port}", transport=kind, max_message_bytes=1 << 20)
    try:
        with pytest.raises(InvalidInput, match="answer: cannot be decoded"):
            await transport.describe(5.0)
    finally:
        await transport.close()
        await server.stop(0)
    assert "Traceback" not in caplog.text


async def test_nobody_there(payload):
    for kind in GRPC:
        transport = connect("127.0.0.1:1", transport=kind, max_message_bytes=1 << 20)
        with pytest.raises(ServiceError):
            await transport.describe(1.0)
        future, _ = start(transport, payload)
        assert isinstance(await asyncio.wait_for(future, 5), ServiceError)
        await transport.close()


@pytest.mark.parametrize("trace", [(), (("traceparent", "00-1"), ("tracestate", "a=b"))])
@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 3_000_000])
def test_a_frame_reads_as_the_message_it_stands_for(length, trace):
    request = shard_pb2.PredictRequest(bundle_version="v" * length, repetitions=[1, 2])
    framed = shard_pb2.PredictStreamRequest.FromString(
        _frame(7, 1_500_000, request.SerializeToString(), trace)
    )
    assert framed == shard_pb2.PredictStreamRequest(
        id=7, timeout_us=1_500_000, request=request, **dict(trace)
    )

"""Spans of a shard: by message on streams, by call else; runs shared by several are linked."""

import asyncio

import pytest
from opentelemetry.trace import SpanKind

from mach import tracing
from mach.v1 import shard_pb2
from tests.shard_server.helpers import request, serving
from tests.shard_server.test_batcher import Queue, started
from tests.spans import NEVER, ids, links, recorded

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
Stream = shard_pb2.PredictStreamRequest


async def exchange(stub, *messages):
    call = stub.PredictStream()
    for message in messages:
        await call.write(message)
    answers = [await call.read() for message in messages if not message.cancel]
    await call.done_writing()
    return answers


async def test_a_message_continues_the_trace_it_names(loaded):
    with recorded(NEVER) as recorder:
        async with serving(loaded) as (stub, _, registry):
            message = Stream(
                id=1, request=request(loaded, 3), traceparent=SAMPLED, tracestate="vendor=1"
            )
            await exchange(stub, message)
        server = recorder.one("mach.v1.ShardService/PredictStream")
        assert (server.context.trace_id, server.parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
        assert server.context.trace_state.get("vendor") == "1"
        assert server.kind is SpanKind.SERVER
        assert server.attributes["rpc.grpc.status_code"] == 0
        queue, run = recorder.one("mach.queue"), recorder.one("mach.inference")
        assert queue.parent.span_id == run.parent.span_id == server.context.span_id
        assert server.start_time <= queue.start_time <= queue.end_time <= run.start_time + 1000
        assert run.start_time < run.end_time
        assert run.attributes["mach.queries"] == 3
        assert run.attributes["mach.repetitions"] == (0, 1, 2, 3)
        examples = {
            sample.name
            for family in registry.collect()
            for sample in family.samples
            if sample.exemplar is not None and sample.exemplar.labels["trace_id"] == TRACE
        }
        assert examples == {
            "mach_shard_queue_wait_seconds_bucket", "mach_shard_inference_seconds_bucket",
        }  # fmt: skip


@pytest.mark.parametrize(
    "header", ["", UNSAMPLED, "nonsense", f"00-{'0' * 32}-{PARENT}-01", SAMPLED * 1000]
)
async def test_other_messages_have_no_spans(loaded, header):
    with recorded(NEVER) as recorder:
        async with serving(loaded) as (stub, _, _):
            (answer,) = await exchange(
                stub, Stream(id=1, request=request(loaded), traceparent=header)
            )
        assert answer.code == 0
        assert recorder.finished == []


async def test_a_refused_message_says_so_in_its_span(loaded):
    with recorded(NEVER) as recorder:
        async with serving(loaded) as (stub, _, _):
            wrong = request(loaded, repetitions=[9])
            (answer,) = await exchange(stub, Stream(id=1, request=wrong, traceparent=SAMPLED))
        span = recorder.one("mach.v1.ShardService/PredictStream")
        assert span.attributes["rpc.grpc.status_code"] == answer.code == 5
        assert recorder.named("mach.inference") == []


async def test_a_message_taken_back_ends_its_span(gated):
    with recorded(NEVER) as recorder:
        async with serving(gated) as (stub, _, _):
            call = stub.PredictStream()
            await call.write(Stream(id=1, request=request(gated), traceparent=SAMPLED))
            await started(gated)
            await call.write(Stream(id=1, cancel=True))
            await call.done_writing()
            async with asyncio.timeout(10):
                while not recorder.finished:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            gated.gate.set()
        assert recorder.finished[0].attributes["rpc.grpc.status_code"] == 1  # CANCELLED


async def test_requests_run_together_are_linked(gated):
    with recorded() as recorder:
        queue = Queue()
        futures = [queue.submit(gated)[1]]
        await started(gated)
        calls = [recorder.spans.start("call", None) for _ in range(3)]
        for number, span in enumerate([*calls, None]):
            with tracing.use(span):
                futures.append(queue.submit(gated, 2, seed=number)[1])
        gated.gate.set()
        await asyncio.gather(*futures)
        queue.batcher.close()
        runs = recorder.named("mach.inference")
        assert len(runs) == 3
        for span, run in zip(calls, runs, strict=True):
            assert (run.context.trace_id, run.parent.span_id) == ids(span)
            assert links(run) == {ids(other) for other in calls if other is not span}
            assert run.attributes["mach.queries.together"] == 8

"""One trace from a client through the aggregator's process to every shard's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry import trace

from mach.client import AsyncMachClient, MachClient
from mach.errors import InvalidInput
from mach.fleet import LocalFleet
from tests.collector import Collector
from tests.servers import ServerProcess
from tests.spans import recorded

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
#: Spans that the documentation has in its table.
DOCUMENTED = set(re.findall(r"^\| `(mach\.[\w./]+)` \|", PAGE.read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def collector():
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def fleet(tiny_bundle, collector):
    """Two shards of two repetitions each; they trace what their callers trace."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in collector.environment(OTEL_SERVICE_NAME="").items():
            patch.setenv(name, value)
        with LocalFleet(tiny_bundle, num_shards=2) as running:
            yield running


@pytest.fixture
def unary(tiny_bundle, collector, fleet):
    """Another aggregator over the same shards, which makes a call a message."""
    shards = ",".join(shard.address for shard in fleet.shards)
    arguments = ["--bundle", str(tiny_bundle.path), "--shards", shards, "--transport", "unary"]
    with ServerProcess("-m", "aggregator", *arguments, env=collector.environment()) as running:
        yield running


@pytest.fixture
def application(monkeypatch):
    """OpenTelemetry as an application sets it up; its spans stay in memory."""
    with recorded() as recorder:
        monkeypatch.setattr(trace, "get_tracer", recorder.provider.get_tracer)
        yield recorder


@pytest.fixture
def ask(request, fleet, application):
    """A traced search through either aggregator; the application's span of the call."""

    def search(transport):
        address = fleet.address
        if transport == "unary":
            address = request.getfixturevalue("unary").address
        with MachClient(address, timeout=5) as client:
            assert client.search("acme drill red", request_id="the-search").coverage.complete
        return application.one("mach.v1.SearchService/Search")

    return search


@pytest.mark.parametrize(
    ("transport", "method"), [("stream", "PredictStream"), ("unary", "Predict")]
)
def test_one_trace_from_client_to_shards(collector, ask, transport, method):
    called = ask(transport)
    trace_id, root = (f"{called.context.trace_id:032x}", f"{called.context.span_id:016x}")

    def mine(spans):
        return [span for span in spans if span.trace_id == trace_id]

    found = mine(collector.wait_for(lambda spans: len(mine(spans)) == 13, "all spans"))
    by_id = {span.span_id: span for span in found}

    def path(span):
        """Names from the span up to what the client made."""
        names = [span.name]
        while span.parent_id != root:
            span = by_id[span.parent_id]  # no hole in the tree
            names.append(span.name)
        return tuple(names)

    server = ("mach.v1.SearchService/Search",)
    batch = ("mach.batch", *server)
    message = ("mach.message", *batch)
    shard = (f"mach.v1.ShardService/{method}", *message)
    assert sorted(map(path, found)) == sorted(
        [
            server, ("mach.queue", *server), batch, ("mach.featurize", *batch),
            ("mach.merge", *batch), *2 * [message], *2 * [shard], *2 * [("mach.queue", *shard)],
            *2 * [("mach.inference", *shard)],
        ]
    )  # fmt: skip
    names = {span.name for span in found}
    assert names <= DOCUMENTED | {"mach.v1.ShardService/Predict"}
    if transport == "stream":
        assert names == DOCUMENTED
    services = {span.service for span in found}
    assert services == {"mach-aggregator", "mach-shard-server"}
    (served,) = [span for span in found if path(span) == server]
    assert served.attributes["mach.request_id"] == "the-search"
    inferred = [s.attributes["mach.repetitions"] for s in found if s.name == "mach.inference"]
    assert sorted(inferred) == [[0, 1], [2, 3]]
    for span in found:  # on one machine the clocks agree: what is within stays within
        if span.name != "mach.batch" and span.parent_id in by_id:
            assert span.start >= by_id[span.parent_id].start - 2_000_000, path(span)
    assert collector.resources["mach-aggregator"]["service.version"]


def test_an_unsampled_parent_leaves_no_span(collector, fleet, application, ask):
    unsampled = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(0))
    with (
        trace.use_span(trace.NonRecordingSpan(unsampled)),
        MachClient(fleet.address, timeout=5) as client,
    ):
        assert client.search("acme drill red").products
    assert application.finished == []
    trace_id = f"{ask('stream').context.trace_id:032x}"
    spans = collector.wait_for(
        lambda spans: sum(span.trace_id == trace_id for span in spans) == 13, "the sampled call"
    )
    assert f"{0xABC:032x}" not in {span.trace_id for span in spans}


async def test_the_asyncio_client_and_failed_calls(fleet, application):
    async with AsyncMachClient(fleet.address, timeout=5) as client:
        await client.search_batch(["acme drill", "delta lamp"])
        with pytest.raises(InvalidInput) as caught:
            await client.search("acme drill", k=100_000, request_id="too-many")
    assert caught.value.request_id == "too-many"
    batch, failed = application.finished
    assert batch.name == "mach.v1.SearchService/SearchBatch"
    assert batch.status.is_unset
    assert batch.attributes["rpc.grpc.status_code"] == 0
    assert failed.status.description == "INVALID_ARGUMENT"
    assert failed.attributes["rpc.grpc.status_code"] == 3


@pytest.mark.parametrize("wrong", ["a b", "-a", "a" * 65, "a\n"])
def test_a_wrong_request_id_is_refused_by_name(fleet, wrong):
    with MachClient(fleet.address) as client, pytest.raises(InvalidInput, match=r"^request_id: "):
        client.search("acme", request_id=wrong)

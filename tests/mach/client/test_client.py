"""Both clients against a scripted server."""

import asyncio
import inspect
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf import struct_pb2
from opentelemetry import propagate
from opentelemetry.propagators import textmap

from mach.client import (
    AsyncMachClient,
    Coverage,
    FleetDescription,
    MachClient,
    Product,
    RepetitionScore,
    SearchResult,
    ShardState,
    Timings,
)
from mach.direct import is_this_machine
from mach.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidInput,
    MachError,
    Overloaded,
    Unauthenticated,
    Unavailable,
    VersionMismatch,
    VersionNotFound,
)
from mach.features import SparseBatch
from mach.v1 import search_pb2, search_pb2_grpc
from mach.wire import sparse_from_proto
from tests.servers import wait_until


class Scripted(search_pb2_grpc.SearchServiceServicer):
    """Answers with the query as a product's id, after the failures it was given."""

    def __init__(self):
        self.failures = []
        self.seen = []
        self.seconds = 0.0

    def _result(self, query):
        attributes = struct_pb2.Struct()
        attributes.update({"title": "T", "price": 2.5, "tags": ["a", None], "in": {"x": True}})
        product = search_pb2.Product(
            product_id=query.text or "features",
            score=-1.5,
            attributes=attributes,
            explanation=[search_pb2.RepetitionScore(repetition=1, bucket=7, log_probability=-0.5)],
        )
        coverage = search_pb2.Coverage(
            answered=3,
            total=5,
            missing=[
                search_pb2.MissingRepetition(repetition=0, reason=1),
                search_pb2.MissingRepetition(repetition=4, reason=77),
            ],
        )
        return search_pb2.SearchResult(
            products=[product, search_pb2.Product(product_id="plain", score=-2)], coverage=coverage
        )

    def _fail(self, request, context):
        self.seen.append((request, context.time_remaining()))
        time.sleep(self.seconds)
        if self.failures:
            code, details, *trailing = self.failures.pop(0)
            context.set_trailing_metadata(trailing)
            context.abort(code, details)

    _timings = search_pb2.Timings(featurize_us=1, queue_us=2, shards_us=3, merge_us=4, total_us=11)

    def Search(self, request, context):
        self._fail(request, context)
        return search_pb2.SearchResponse(
            result=self._result(request.query), bundle_version="v1", timings=self._timings
        )

    def SearchBatch(self, request, context):
        self._fail(request, context)
        return search_pb2.SearchBatchResponse(
            results=[self._result(query) for query in request.queries],
            bundle_version="v1",
            timings=self._timings,
        )

    def DescribeFleet(self, request, context):
        self._fail(request, context)
        return search_pb2.DescribeFleetResponse(
            bundle_version="v1",
            num_products=9,
            num_repetitions=5,
            num_buckets=4,
            num_features=3,
            max_k=2,
            max_batch_size=1,
            shards=[
                search_pb2.ShardState(
                    address="a:1", repetitions=[0, 1], bundle_version="v0", message="no"
                )
            ],
        )


@pytest.fixture
def served():
    server = grpc.server(ThreadPoolExecutor(4))
    servicer = Scripted()
    search_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def script(served):
    return served[0]


@pytest.fixture(params=["sync", "asyncio"])
def call(request, served, script):
    """Calls a method of either client: ``call("search", "red lamp", k=3)``."""
    address = served[1]

    def call(method, *args, client_options=None, **kwargs):
        if request.param == "sync":
            with MachClient(address, **(client_options or {})) as client:
                return getattr(client, method)(*args, **kwargs)

        async def ask():
            async with AsyncMachClient(address, **(client_options or {})) as client:
                return await getattr(client, method)(*args, **kwargs)

        return asyncio.run(ask())

    return call


def expected(text):
    return SearchResult(
        products=(
            Product(
                text,
                -1.5,
                {"title": "T", "price": 2.5, "tags": ["a", None], "in": {"x": True}},
                (RepetitionScore(1, 7, -0.5),),
            ),
            Product("plain", -2.0),
        ),
        coverage=Coverage(3, 5, {0: "timeout", 4: "77"}),
        bundle_version="v1",
        timings=Timings(1, 2, 3, 4, 11),
    )


def test_search(call, script):
    result = call("search", "red lamp")
    assert result == expected("red lamp")
    assert not result.coverage.complete
    (request, remaining), *_ = script.seen
    assert request.options.k == 10
    assert 0.5 < remaining < 1.1


def test_every_option_is_sent(call, script):
    call(
        "search",
        "red lamp",
        3,
        minimum_repetitions=2,
        attributes=True,
        explain=True,
        bundle_version="v1",
        filter="price < 50",
        allowed=["a", "b"],
        blocked=("c",),
        timeout=9.0,
    )
    (request, remaining), *_ = script.seen
    assert request == search_pb2.SearchRequest(
        query=search_pb2.Query(text="red lamp"),
        options=search_pb2.SearchOptions(
            k=3,
            minimum_repetitions=2,
            include_attributes=True,
            explain=True,
            bundle_version="v1",
            filter="price < 50",
            allowed_product_ids=["a", "b"],
            blocked_product_ids=["c"],
        ),
    )
    assert 8 < remaining < 9.1


def test_batch(call, script):
    row = SparseBatch(np.array([3], np.int32), np.ones(1, np.float32), np.array([0, 1], np.int32))
    results = call("search_batch", iter(["red", row, "blue"]), k=2)
    assert results == [expected("red"), expected("features"), expected("blue")]
    sent = sparse_from_proto(script.seen[0][0].queries[1].features, 10)
    assert sent.indices.tolist() == [3]
    assert script.seen[0][0].options.k == 2


def test_describe(call):
    assert call("describe") == FleetDescription(
        "v1", 9, 5, 4, 3, 2, 1, (ShardState("a:1", (0, 1), "v0", False, "no"),)
    )


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.NOT_FOUND, VersionNotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, VersionMismatch),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.INTERNAL, MachError),
    ],
)
@pytest.mark.parametrize("method", ["search", "search_batch", "describe"])
def test_a_status_is_an_exception(call, script, code, kind, method):
    script.failures = [(code, "options.k: is wrong")]
    arguments = {"search": ["a"], "search_batch": [["a"]], "describe": []}[method]
    with pytest.raises(MachError) as caught:
        call(method, *arguments)
    assert type(caught.value) is kind
    assert str(caught.value) == "options.k: is wrong"
    if kind is InvalidInput:
        assert caught.value.field == "options.k"


@pytest.mark.parametrize(("pushback", "milliseconds"), [("70", 70), ("-1", 50), ("x", 50)])
def test_push_back_is_told(call, script, pushback, milliseconds):
    failure = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", ("grpc-retry-pushback-ms", pushback))
    script.failures = [failure]
    with pytest.raises(Overloaded) as caught:
        call("search", "a")
    assert caught.value.retry_after_ms == milliseconds


def test_time_passes(call, script):
    script.seconds = 0.3
    with pytest.raises(DeadlineExceeded):
        call("search", "a", timeout=0.05)
    with pytest.raises(DeadlineExceeded):
        call("search", "a", client_options={"timeout": 0.05})


def test_nobody_there(script):
    with MachClient("127.0.0.1:1") as client, pytest.raises(Unavailable):
        client.search("a")


def test_retries_where_told_to(call, script):
    unavailable = (grpc.StatusCode.UNAVAILABLE, "restarting")
    script.failures = [unavailable, unavailable]
    assert call("search", "a", client_options={"max_attempts": 3}).bundle_version == "v1"
    assert len(script.seen) == 3
    script.failures, script.seen = [unavailable], []
    with pytest.raises(Unavailable, match="restarting"):
        call("search", "a")
    assert len(script.seen) == 1


def refusal(milliseconds):
    pushback = ("grpc-retry-pushback-ms", str(milliseconds))
    return (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback)


def test_a_refusal_is_waited_out_where_there_is_time(call, script):
    script.failures = [refusal(200), refusal(100)]
    begun = time.monotonic()
    found = call("search", "a", client_options={"max_attempts": 3, "timeout": 3})
    assert found.bundle_version == "v1"
    assert time.monotonic() - begun >= 0.3
    # One deadline for all of them. Clocks that gRPC and Python go by are some milliseconds apart.
    first, second, third = (left - 0.05 for _, left in script.seen)
    assert first < 3
    assert second < 3 - 0.2
    assert third < 3 - 0.2 - 0.1


def test_a_refusal_for_longer_is_told_at_once(call, script):
    script.failures = [refusal(5_000)]
    begun = time.monotonic()
    with pytest.raises(Overloaded) as caught:
        call("search", "a", client_options={"max_attempts": 3, "timeout": 2})
    assert caught.value.retry_after_ms == 5_000
    assert time.monotonic() - begun < 1
    assert len(script.seen) == 1


def test_attempts_end_with_a_refusal(call, script):
    script.failures = [refusal(1)] * 5
    with pytest.raises(Overloaded):
        call("search", "a", client_options={"max_attempts": 3, "timeout": 5})
    assert len(script.seen) == 3


def test_where_most_calls_are_refused_few_are_repeated(served, script):
    script.failures = [refusal(1)] * 100
    with MachClient(served[1], max_attempts=5, timeout=5) as client:
        for _ in range(20):
            with pytest.raises(Overloaded):
                client.search("a")
    assert 20 < len(script.seen) < 27


def test_an_answer_that_is_too_large_is_no_overload(call, script):
    with pytest.raises(InvalidInput, match=r"max_message_bytes: .*larger than max") as caught:
        call("search", "a" * 500, client_options={"max_message_bytes": 300, "max_attempts": 3})
    assert caught.value.field == "max_message_bytes"
    assert len(script.seen) == 1


@pytest.mark.parametrize(
    ("arguments", "options", "field"),
    [
        (["a"], {"k": 0}, "options.k"),
        (["a"], {"k": "10"}, "options.k"),
        (["a"], {"k": 2**40}, "options"),
        (["a"], {"minimum_repetitions": -1}, "options"),
        (["a"], {"allowed": "p0"}, "allowed"),
        (["a"], {"blocked": "p0"}, "blocked"),
        ([7], {}, "query"),
        ([None], {}, "query"),
        (["\ud800"], {}, "query.text"),
    ],
)
def test_mistakes_that_cannot_be_sent(call, script, arguments, options, field):
    with pytest.raises(InvalidInput) as caught:
        call("search", *arguments, **options)
    assert caught.value.field == field
    assert script.seen == []


def test_mistakes_in_a_batch_are_named(call):
    with pytest.raises(InvalidInput) as caught:
        call("search_batch", ["a", 3])
    assert caught.value.field == "queries[1]"
    with pytest.raises(InvalidInput, match="got one text"):
        call("search_batch", "a")
    with pytest.raises(InvalidInput, match="blocked: must be a list of product ids"):
        call("search_batch", ["a"], blocked="p0")


@pytest.mark.parametrize("client", [MachClient, AsyncMachClient])
@pytest.mark.parametrize("attempts", [0, 6, 2.5, True, "3"])
def test_attempts_have_a_range(client, attempts):
    with pytest.raises(InvalidInput, match="max_attempts"):
        client("127.0.0.1:1", max_attempts=attempts)


@pytest.mark.parametrize("client", [MachClient, AsyncMachClient])
@pytest.mark.parametrize("size", [0, -5, 2**40, 1.5, "x"])
def test_message_sizes_have_a_range(client, size):
    with pytest.raises(InvalidInput, match="max_message_bytes"):
        client("127.0.0.1:1", max_message_bytes=size)


@pytest.mark.parametrize("method", ["__init__", "search", "search_batch", "describe"])
def test_both_clients_take_the_same(method):
    sync = inspect.signature(getattr(MachClient, method))
    other = inspect.signature(getattr(AsyncMachClient, method))
    assert sync.parameters == other.parameters


def test_a_client_is_shared_between_threads(served, script):
    with MachClient(served[1], timeout=10) as client, ThreadPoolExecutor(8) as threads:
        texts = [f"query {number}" for number in range(100)]
        for text, result in zip(texts, threads.map(client.search, texts), strict=True):
            assert result.products[0].product_id == text


def test_results_cannot_be_changed():
    with pytest.raises(AttributeError):
        expected("a").products = ()


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), 1e12, "1", True])
def test_timeouts_have_a_range(call, timeout):
    for arguments in ({"timeout": timeout}, {"client_options": {"timeout": timeout}}):
        with pytest.raises(InvalidInput, match="timeout: must be above 0"):
            call("search", "lamp", **arguments)
    with pytest.raises(InvalidInput, match="timeout"):
        call("describe", timeout=timeout)


@pytest.mark.parametrize(
    ("address", "is_there"),
    [
        ("127.0.0.1:5", True),
        ("ipv4:127.0.0.1:5", True),
        ("dns:localhost:5", True),
        ("dns:///LocalHost:5", True),
        ("dns://8.8.8.8/localhost:5", True),
        ("[::1]:5", True),
        ("ipv6:[::1]:5", True),
        ("localhost", True),
        ("localhost.example:5", False),
        ("127.example:5", False),
        ("10.0.0.1:5", False),
        ("dns:///aggregator:5", False),
    ],
)
def test_this_machine_is_known_however_it_is_written(address, is_there):
    assert is_this_machine(address) is is_there


def test_a_proxy_is_not_asked_for_this_machine(call, monkeypatch, free_port):
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    assert call("search", "lamp").products[0].product_id == "lamp"


def test_calls_end_with_their_client(served, script):
    script.seconds = 1.0
    client = MachClient(served[1], timeout=10.0)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.search, "lamp")
        wait_until(lambda: script.seen)
        client.close()
        with pytest.raises(Unavailable, match="the client is closed"):
            call.result()
    with pytest.raises(Unavailable, match="the client is closed"):
        client.search("lamp")


async def test_calls_end_with_their_asyncio_client(served, script):
    script.seconds = 1.0
    client = AsyncMachClient(served[1], timeout=10.0)
    call, other = (asyncio.create_task(client.search(text)) for text in ("lamp", "drill"))
    await asyncio.to_thread(wait_until, lambda: len(script.seen) == 2)
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    await client.close()
    with pytest.raises(Unavailable, match="the client is closed"):
        await call
    with pytest.raises(Unavailable, match="the client is closed"):
        await client.search("lamp")


def test_an_asyncio_client_may_be_made_before_there_is_a_loop(served):
    client = AsyncMachClient(served[1])

    async def search():
        return await client.search("lamp")

    assert asyncio.run(search()).products[0].product_id == "lamp"
    with pytest.raises(ConfigError, match="event loop of its first call"):
        asyncio.run(search())


def test_headers_of_a_propagator_may_have_capitals(call, monkeypatch):
    class Capitals(textmap.TextMapPropagator):
        def inject(self, carrier, context=None, setter=textmap.default_setter):
            setter.set(carrier, "X-Amzn-Trace-Id", "Root=1")

        def extract(self, carrier, context=None, getter=textmap.default_getter):
            return context

        @property
        def fields(self):
            return {"X-Amzn-Trace-Id"}

    monkeypatch.setattr(propagate, "propagator", Capitals())
    assert call("search", "lamp").products[0].product_id == "lamp"

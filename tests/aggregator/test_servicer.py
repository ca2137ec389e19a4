"""Over gRPC: every mistake is named by its field and gets the right status."""

from contextlib import asynccontextmanager
from datetime import date, datetime
from decimal import Decimal
from types import SimpleNamespace

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from aggregator.coverage import Coverage, MissingReason
from aggregator.policy import FanOutPolicy, Limits
from aggregator.replies import fill_result
from aggregator.results import SearchResult
from aggregator.servicer import SearchServicer
from mach.errors import Unavailable
from mach.serving import ErrorInterceptor
from mach.v1 import features_pb2, search_pb2, search_pb2_grpc
from tests.aggregator.fakes import fake_fleet

NAN = np.array([np.nan], "<f4").tobytes()


def features(indices=(1,), values=(0.5,), splits=(0, 1)):
    return features_pb2.SparseFeatures(
        indices=np.array(indices, "<i4").tobytes(),
        values=np.array(values, "<f4").tobytes(),
        splits=np.array(splits, "<i4").tobytes(),
    )


@asynccontextmanager
async def serving(
    core,
    *,
    default_seconds=5.0,
    margin_seconds=0.01,
    log_queries=False,
    max_message_bytes=4 << 20,
):
    """A stub for a server on ``core``."""
    options = [("grpc.max_send_message_length", max_message_bytes)]
    server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=options)
    servicer = SearchServicer(
        core,
        default_seconds=default_seconds,
        margin_seconds=margin_seconds,
        max_message_bytes=max_message_bytes,
        log_queries=log_queries,
    )
    search_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield search_pb2_grpc.SearchServiceStub(channel)
    finally:
        await server.stop(0)


async def test_search_and_batch(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet, serving(fleet.aggregator) as stub:
        options = search_pb2.SearchOptions(k=3, include_attributes=True, explain=True)
        query = search_pb2.Query(text=titles[7])
        one = await stub.Search(search_pb2.SearchRequest(query=query, options=options))
        product = one.result.products[0]
        assert product.product_id == "P00007"
        assert json_format.MessageToDict(product.attributes)["title"] == titles[7]
        assert [part.repetition for part in product.explanation] == [0, 1, 2, 3]
        assert one.bundle_version == served.version
        assert (one.result.coverage.answered, one.result.coverage.total) == (4, 4)
        assert 0 < one.timings.shards_us <= one.timings.total_us
        assert 0 < one.timings.merge_us <= one.timings.total_us
        many = await stub.SearchBatch(
            search_pb2.SearchBatchRequest(
                queries=[query, search_pb2.Query(features=features())], options=options
            )
        )
        found = [product.product_id for product in many.results[0].products]
        assert found == [product.product_id for product in one.result.products]
        assert len(many.results[1].products) == 3


async def test_ten_products_by_default(served, one_each, titles):
    async with fake_fleet(served, one_each) as fleet, serving(fleet.aggregator) as stub:
        request = search_pb2.SearchRequest(query=search_pb2.Query(text=titles[7]))
        answer = await stub.Search(request)
        assert len(answer.result.products) == 10
        assert not answer.result.products[0].HasField("attributes")


GOOD = search_pb2.Query(text="red drill")
LIMITS = Limits(max_k=50, max_batch_size=3, max_text_length=20, max_nonzeros=2, max_product_ids=2)
MISTAKES = [
    ({"query": None}, "query: needs text or features"),
    ({"query": {"text": ""}}, "query.text: is empty"),
    ({"query": {"text": " \n\u00a0"}}, "query.text: is empty"),
    ({"query": {"text": "x" * 21}}, "query.text: 21 characters, at most 20"),
    ({"query": {"features": features(indices=(-1,))}}, "query.features.indices: must be from 0"),
    ({"query": {"features": features(indices=(10**6,))}}, "query.features.indices: must be from"),
    ({"query": {"features": features(values=(np.nan,))}}, "query.features.values: must be"),
    ({"query": {"features": features(values=(np.inf,))}}, "query.features.values: must be"),
    ({"query": {"features": features(values=(1, 2))}}, "query.features.values: 2 values for 1"),
    ({"query": {"features": features(splits=(0, 2))}}, "query.features.splits: must rise from 0"),
    ({"query": {"features": features(splits=())}}, "query.features.splits: must rise from 0"),
    ({"query": {"features": features(splits=(0, 0, 1))}}, "query.features.splits: must describe"),
    (
        {"query": {"features": features((1, 2, 3), (1, 1, 1), (0, 3))}},
        "query.features.indices: 3 features, at most 2",
    ),
    (
        {"query": {"features": features_pb2.SparseFeatures(indices=b"123")}},
        "query.features.indices: 3 bytes are no whole number",
    ),
    ({"options": {"k": 51}}, "options.k: must be from 1 to 50, got 51"),
    ({"options": {"k": 2**32 - 1}}, "options.k: must be from 1 to 50"),
    ({"options": {"minimum_repetitions": 5}}, "options.minimum_repetitions: must be from 0 to 4"),
    (
        {"options": {"allowed_product_ids": ["a"] * 3}},
        "options.allowed_product_ids: 3 ids, at most",
    ),
    (
        {"options": {"blocked_product_ids": ["a"] * 3}},
        "options.blocked_product_ids: 3 ids, at most",
    ),
    ({"options": {"filter": "x" * 21}}, "options.filter: 21 characters, at most 20"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
async def test_mistakes_are_named(served, one_each, change, message):
    async with (
        fake_fleet(served, one_each, limits=LIMITS) as fleet,
        serving(fleet.aggregator) as stub,
    ):
        request = search_pb2.SearchRequest(**{"query": GOOD, **change})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Search(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith(message)

        batch = search_pb2.SearchBatchRequest(
            queries=[GOOD, request.query], options=request.options
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SearchBatch(batch)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith(message.replace("query", "queries[1]", 1))


@pytest.mark.parametrize("count", [0, 4])
async def test_a_batch_has_a_size(served, one_each, count):
    async with (
        fake_fleet(served, one_each, limits=LIMITS) as fleet,
        serving(fleet.aggregator) as stub,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SearchBatch(search_pb2.SearchBatchRequest(queries=[GOOD] * count))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == f"queries: must be 1 to 3, got {count}"


async def test_an_answer_that_cannot_be_sent_is_the_callers_mistake(served, one_each, titles):
    """And not an overload, which it would be again for as long as the caller tries."""
    query = search_pb2.Query(text=titles[7])
    async with (
        fake_fleet(served, one_each) as fleet,
        serving(fleet.aggregator, max_message_bytes=4000) as stub,
    ):

        async def search(count, **options):
            options = search_pb2.SearchOptions(**options)
            if count == 1:
                request = search_pb2.SearchRequest(query=query, options=options)
                return len((await stub.Search(request)).result.products)
            request = search_pb2.SearchBatchRequest(queries=[query] * count, options=options)
            return len((await stub.SearchBatch(request)).results)

        assert await search(1, k=50) == 50
        assert await search(5, k=10) == 5
        for count, options in ((1, {"k": 50, "include_attributes": True}), (50, {"k": 10})):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await search(count, **options)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details().startswith("options: the answer has ")
            assert "than the 4000 of --max-message-bytes; ask for fewer" in caught.value.details()


@pytest.mark.parametrize("asked", [True, False])
async def test_query_texts_are_logged_where_asked_for_only(served, one_each, titles, caplog, asked):
    caplog.set_level("DEBUG")
    queries = [search_pb2.Query(text=titles[number]) for number in (7, 8)]
    untold = search_pb2.Query(features=features())  # has no text
    async with (
        fake_fleet(served, one_each) as fleet,
        serving(fleet.aggregator, log_queries=asked) as stub,
    ):
        await stub.Search(search_pb2.SearchRequest(query=queries[0]))
        await stub.SearchBatch(search_pb2.SearchBatchRequest(queries=[*queries, untold]))
    logged = [record.query for record in caplog.records if hasattr(record, "query")]
    assert logged == ([titles[7], titles[7], titles[8]] if asked else [])
    if not asked:
        assert all(titles[7] not in record.getMessage() for record in caplog.records)


async def test_statuses_of_the_fleets_troubles(served, one_each):
    async with fake_fleet(served, one_each) as fleet, serving(fleet.aggregator) as stub:

        async def status(**options):
            options = search_pb2.SearchOptions(**options)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Search(search_pb2.SearchRequest(query=GOOD, options=options), timeout=2)
            return caught.value.code().name

        assert await status(bundle_version="0000") == "NOT_FOUND"
        for shard in fleet.shards.values():
            shard.error = Unavailable("gone")
        assert await status() == "UNAVAILABLE"
        for shard in fleet.shards.values():
            shard.error, shard.spoil = None, lambda a: setattr(a, "bundle_version", "f" * 64)
        assert await status() == "FAILED_PRECONDITION"


async def test_while_loading_it_is_unavailable(served, one_each):
    async with fake_fleet(served, one_each) as fleet, serving(fleet.aggregator) as stub:
        fleet.bundles.loaded.clear()
        for call in (
            stub.Search(search_pb2.SearchRequest(query=GOOD)),
            stub.SearchBatch(search_pb2.SearchBatchRequest(queries=[GOOD])),
            stub.DescribeFleet(search_pb2.DescribeFleetRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_callers_deadline_is_kept_with_a_margin(served, one_each):
    policy = FanOutPolicy(minimum_repetitions=2, straggler_seconds=30.0)
    async with (
        fake_fleet(served, one_each, policy=policy) as fleet,
        serving(fleet.aggregator, default_seconds=1.0, margin_seconds=0.5) as stub,
    ):
        fleet.shards["shard3:1"].delay = None
        request = search_pb2.SearchRequest(query=GOOD)
        for timeout in (1.0, None):  # without one, the server's default
            answer = await stub.Search(request, timeout=timeout)
            missing = answer.result.coverage.missing
            assert [(m.repetition, m.reason) for m in missing] == [(3, MissingReason.TIMEOUT)]


@pytest.mark.parametrize(
    ("timeout", "margin", "shards_get"),
    [(1.0, 0.01, 0.95), (0.1, 0.01, 0.09), (0.012, 0.01, 0.006), (None, 0.01, 4.75)],
)
def test_the_margin_grows_with_the_deadline(timeout, margin, shards_get):
    servicer = SearchServicer(
        None, default_seconds=5.0, margin_seconds=margin, max_message_bytes=1024
    )
    context = SimpleNamespace(time_remaining=lambda: timeout)
    assert servicer._seconds(context) == pytest.approx(shards_get)


async def test_describes_the_fleet(served, one_each):
    async with fake_fleet(served, one_each) as fleet, serving(fleet.aggregator) as stub:
        fleet.shards["shard1:1"].describe_error = Unavailable("connection refused")
        fleet.shards["shard1:1"].break_off()
        answer = await stub.DescribeFleet(search_pb2.DescribeFleetRequest())
        assert answer.bundle_version == served.version
        assert (answer.num_products, answer.num_repetitions, answer.num_buckets) == (200, 4, 16)
        assert answer.num_features == served.manifest.num_features
        assert (answer.max_k, answer.max_batch_size) == (1000, 256)
        states = {shard.address: shard for shard in answer.shards}
        assert [s.ready for s in states.values()] == [True, False, True, True]
        assert states["shard1:1"].message == "does not answer: connection reset"
        assert states["shard2:1"].repetitions == [2]
        assert states["shard2:1"].bundle_version == served.version


def test_attributes_of_any_type_can_be_sent():
    attributes = {
        "text": "ä",
        "whole": 7,
        "number": 0.5,
        "yes": True,
        "none": None,
        "nan": float("nan"),
        "infinite": float("inf"),
        "day": date(2024, 2, 29),
        "moment": datetime(2024, 2, 29, 1, 2, 3),
        "decimal": Decimal("1.25"),
        "bytes": b"\x00\xff",
        "list": ["a", 1, None, {"b": [2.5]}],
        "struct": {"inner": {"x": 1}},
    }
    message = search_pb2.SearchResult()
    result = SearchResult(["P"], [1.0], Coverage(1, 1, {}), attributes=[attributes])
    fill_result(message, result)
    assert json_format.MessageToDict(message.products[0].attributes) == {
        **attributes,
        "nan": None,
        "infinite": None,
        "day": "2024-02-29",
        "moment": "2024-02-29T01:02:03",
        "decimal": 1.25,
        "bytes": "AP8=",
    }


@given(
    ids=st.lists(st.text(max_size=8), max_size=5, unique=True),
    answered=st.integers(0, 3),
    reason=st.sampled_from(MissingReason),
    data=st.data(),
)
def test_results_survive_the_wire(ids, answered, reason, data):
    finite = st.floats(allow_nan=False, allow_infinity=False)
    scores = data.draw(st.lists(finite, min_size=len(ids), max_size=len(ids)))
    part = st.tuples(st.integers(0, 99), st.integers(0, 2**31), st.floats(-100, 0, width=32))
    parts = data.draw(st.lists(st.lists(part, max_size=3), min_size=len(ids), max_size=len(ids)))
    missing = dict.fromkeys(range(answered, 3), reason)
    message = search_pb2.SearchResult()
    fill_result(
        message, SearchResult(ids, scores, Coverage(answered, 3, missing), explanations=parts)
    )
    read = search_pb2.SearchResult.FromString(message.SerializeToString())
    assert [(p.product_id, p.score) for p in read.products] == list(zip(ids, scores, strict=True))
    assert [
        [(e.repetition, e.bucket, e.log_probability) for e in p.explanation] for p in read.products
    ] == parts
    assert {m.repetition: m.reason for m in read.coverage.missing} == missing

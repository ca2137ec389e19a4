"""Spans of batches: one trace for a call, links between those that were sent together."""

import asyncio

import pytest

from aggregator.policy import FanOutPolicy
from aggregator.requests import SearchOptions
from mach import tracing
from mach.errors import Unavailable
from tests.aggregator.fakes import fake_fleet
from tests.spans import NEVER, ids, links, recorded

PATIENT = FanOutPolicy(minimum_repetitions=2, straggler_seconds=30.0)


async def call(fleet, recorder, *texts, sampled=True):
    """A search as the servicer does it; its span."""
    span = recorder.spans.start("call", None) if sampled else None
    with tracing.use(span):
        await fleet.search(list(texts), SearchOptions(k=3), single=len(texts) == 1)
    if span is not None:
        span.end()
    return span


def parent(span):
    return span.context.trace_id, span.parent.span_id


async def test_one_call_is_one_tree(served, one_each, titles):
    with recorded() as recorder:
        async with fake_fleet(served, one_each) as fleet:
            root = await call(fleet, recorder, titles[3])
        assert {span.context.trace_id for span in recorder.finished} == {root.context.trace_id}
        batch = recorder.one("mach.batch")
        assert parent(recorder.one("mach.queue")) == parent(batch) == ids(root)
        assert batch.attributes["mach.queries"] == 1
        assert batch.attributes["mach.bundle_version"] == served.version
        messages = recorder.named("mach.message")
        for child in (*messages, recorder.one("mach.featurize"), recorder.one("mach.merge")):
            assert parent(child) == ids(batch)
            assert batch.start_time <= child.start_time <= child.end_time <= batch.end_time
        assert sorted(m.attributes["mach.repetitions"] for m in messages) == [
            (r,) for r in range(4)
        ]
        assert {m.attributes["mach.outcome"] for m in messages} == {"ok"}
        assert {m.attributes["mach.endpoint"] for m in messages} == set(one_each)
        assert recorder.one("mach.merge").attributes["mach.repetitions.answered"] == 4


async def test_calls_sent_together_are_linked(served, one_each, titles):
    with recorded() as recorder:
        async with fake_fleet(served, one_each, policy=PATIENT) as fleet:
            calls = await asyncio.gather(
                call(fleet, recorder, titles[0], sampled=False),
                *(call(fleet, recorder, title) for title in titles[1:4]),
            )
        lead, *others = calls[1:]
        batches = {span.context.trace_id: span for span in recorder.named("mach.batch")}
        assert len(batches) == 3
        whole = batches[lead.context.trace_id]
        assert whole.attributes["mach.queries"] == 4  # one of them in no trace
        assert links(whole) == {ids(other) for other in others}
        for other in others:
            own = batches[other.context.trace_id]
            assert parent(own) == ids(other)
            assert links(own) == {ids(whole)}
        messages = recorder.named("mach.message")
        assert len(messages) == 4
        assert {parent(message) for message in messages} == {ids(whole)}
        assert len(recorder.named("mach.queue")) == 3


async def test_parts_of_one_call_are_not_linked_with_themselves(served, one_each, titles):
    policy = FanOutPolicy(minimum_repetitions=2, max_rows=8)
    with recorded() as recorder:
        async with fake_fleet(served, one_each, policy=policy) as fleet:
            root = await call(fleet, recorder, *titles[:20])
        assert {span.context.trace_id for span in recorder.finished} == {root.context.trace_id}
        batches = recorder.named("mach.batch")
        assert sum(batch.attributes["mach.queries"] for batch in batches) == 20
        assert all(parent(batch) == ids(root) and not batch.links for batch in batches)


async def test_unsampled_calls_have_no_spans(served, one_each, titles):
    with recorded(NEVER) as recorder:
        seen = []
        async with fake_fleet(served, one_each) as fleet:
            for shard in fleet.shards.values():
                original = shard.predict
                shard.predict = lambda *a, original=original: (seen.append(a[4]), original(*a))[1]
            await call(fleet, recorder, titles[3])
        assert recorder.finished == []
        assert seen == [()] * 4


async def test_failures_and_what_is_taken_back(served, one_each, titles):
    with recorded() as recorder:
        async with fake_fleet(served, one_each) as fleet:
            fleet.shards["shard0:1"].error = Unavailable("no")
            fleet.shards["shard1:1"].delay = None
            await call(fleet, recorder, titles[3])
        outcomes = {
            span.attributes["mach.repetitions"][0]: span.attributes["mach.outcome"]
            for span in recorder.named("mach.message")
        }
        assert outcomes == {0: "unavailable", 1: "withdrawn", 2: "ok", 3: "ok"}
        assert recorder.one("mach.merge").attributes["mach.repetitions.answered"] == 2


async def test_hedges_and_retries_are_told_apart(served, load, titles):
    policy = FanOutPolicy(
        minimum_repetitions=2, straggler_seconds=0.02, straggler_factor=4.0, hedge_fraction=1.0
    )
    replicas = {name: load(0, 1, 2, 3) for name in ("a:1", "b:1")}
    with recorded() as recorder:
        async with fake_fleet(served, replicas, policy=policy) as fleet:
            fleet.shards["a:1"].error = Unavailable("no")
            for _ in range(4):
                await call(fleet, recorder, titles[3])
                if any(span.attributes["mach.retry"] for span in recorder.named("mach.message")):
                    break
            fleet.shards["a:1"].error = None
        retry = next(m for m in recorder.named("mach.message") if m.attributes["mach.retry"])
        assert retry.attributes["mach.endpoint"] == "b:1"
        assert not retry.attributes["mach.hedge"]
    with recorded() as recorder:
        async with fake_fleet(served, replicas, policy=policy) as fleet:
            for shard in fleet.shards.values():
                shard.delay = 0.3
            await call(fleet, recorder, titles[3])
        hedge = next(m for m in recorder.named("mach.message") if m.attributes["mach.hedge"])
        assert not hedge.attributes["mach.retry"]


async def test_a_query_of_which_nothing_is_known_has_a_batch_without_messages(served, one_each):
    with recorded() as recorder:
        async with fake_fleet(served, one_each) as fleet:
            await call(fleet, recorder, "zzzz qqqq")
        assert {span.name for span in recorder.finished} == {
            "call", "mach.queue", "mach.batch", "mach.featurize",
        }  # fmt: skip


async def test_histograms_keep_sampled_traces_as_examples(served, one_each, titles):
    with recorded() as recorder:
        async with fake_fleet(served, one_each) as fleet:
            root = await call(fleet, recorder, titles[3])
        found = {
            sample.name: sample.exemplar.labels["trace_id"]
            for family in fleet.registry.collect()
            for sample in family.samples
            if sample.exemplar is not None
        }
    names = ("queue_wait", "fanout", "merge", "shard_rpc")
    trace = f"{root.context.trace_id:032x}"
    assert found == {f"mach_aggregator_{name}_seconds_bucket": trace for name in names}


async def test_what_is_logged_for_a_batch_is_no_calls(served, one_each, titles, caplog):
    """Several calls may have caused it; none of their ids may stand in it."""
    seen = []
    with recorded() as recorder:
        async with fake_fleet(served, one_each) as fleet:
            shard = fleet.shards["shard0:1"]
            shard.spoil = lambda answer: seen.append(tracing.current())
            await call(fleet, recorder, titles[3])
    assert seen == [None]


@pytest.fixture(autouse=True)
def _tracing_is_off_again():
    yield
    assert tracing.spans() is None

"""The load generator against a server whose behaviour is known."""

import asyncio
import json
import time
import urllib.request
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server

from mach.errors import ConfigError, InvalidInput
from mach.loadtest import LoadPlan, LoadReport, MetricsCpu, Outcomes, Usage, run_load, spent
from mach.v1 import search_pb2, search_pb2_grpc


class Fake(search_pb2_grpc.SearchServiceServicer):
    """Answers after ``delay`` seconds, or with a status where ``decide`` names one."""

    def __init__(self, delay=0.0, decide=lambda number: None):
        self.delay, self.decide = delay, decide
        self.texts = []

    async def Search(self, request, context):
        self.texts.append(request.query.text)
        if status := self.decide(len(self.texts)):
            await context.abort(status, "as told")
        await asyncio.sleep(self.delay)
        coverage = search_pb2.Coverage(answered=3, total=4)
        return search_pb2.SearchResponse(result=search_pb2.SearchResult(coverage=coverage))


@asynccontextmanager
async def serving(fake):
    server = grpc.aio.server()
    search_pb2_grpc.add_SearchServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def plan(**changes):
    defaults = {"texts": ["a", "b"], "seconds": 0.6, "warm_up_seconds": 0.1}
    return LoadPlan(**defaults | changes)


async def test_closed_loop_keeps_its_concurrency():
    fake = Fake(delay=0.05)
    async with serving(fake) as address:
        report = await run_load(address, plan(concurrency=4))
    assert report.mode == "closed"
    assert report.errors == report.shed == 0
    assert 20 < report.qps <= 4 / 0.05 + 8
    assert report.p50_ms >= 50
    assert report.coverage == pytest.approx(0.75)
    assert set(fake.texts) == {"a", "b"}
    assert len(fake.texts) > report.queries  # the warm-up was sent but not counted


async def test_open_loop_keeps_its_rate():
    async with serving(Fake()) as address:
        report = await run_load(address, plan(rate=100.0, seconds=1.0))
    assert report.mode == "open"
    assert 60 < report.offered_qps < 140


async def test_a_stall_is_charged_to_all_whom_it_kept_waiting():
    """The loop of a stalled server stands still; so does nobody's clock."""

    def stall(number):
        if number == 30:
            time.sleep(0.4)  # blocks the generator too, which shares the loop: the worst case

    async with serving(Fake(decide=stall)) as address:
        report = await run_load(address, plan(rate=200.0, seconds=1.0, warm_up_seconds=0))
    assert report.max_ms > 300
    # Requests due in the 0.4 s are about 80 of 200: their mean wait is half the stall.
    assert report.p90_ms > 150


async def test_refused_requests_and_failures_are_told_apart():
    def decide(number):
        if number % 4 == 0:
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        return grpc.StatusCode.UNAVAILABLE if number % 4 == 1 else None

    async with serving(Fake(decide=decide)) as address:
        report = await run_load(address, plan(concurrency=2))
    assert report.shed == report.statuses["RESOURCE_EXHAUSTED"] > 0
    assert report.errors == report.statuses["UNAVAILABLE"] > 0
    assert report.queries > 0


async def test_nobody_there():
    report = await run_load("127.0.0.1:9", plan(concurrency=1, seconds=0.2, warm_up_seconds=0))
    assert report.queries == 0
    assert report.errors > 0
    assert json.loads(json.dumps(report.to_json()))["p50_ms"] is None


async def test_cpu_is_the_difference_of_what_the_fleet_publishes():
    registry = CollectorRegistry()
    counter = Counter("process_cpu_seconds", "as in a real process", registry=registry)
    counter.inc(5)
    http, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        url = f"http://127.0.0.1:{http.server_port}/metrics"
        assert MetricsCpu([url]).read()[url].seconds == 5

        def spend(number):
            counter.inc(0.001)

        async with serving(Fake(decide=spend)) as address:
            used = MetricsCpu([url])
            report = await run_load(address, plan(concurrency=2), cpu=used)
        assert report.cpu_seconds_per_1000_queries == pytest.approx(1.0, rel=0.05)
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def test_metrics_are_asked_for_past_a_proxy_whose_loopback_is_another(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # which knows the proxies of its time
    registry = CollectorRegistry()
    Counter("process_cpu_seconds", "as in a real process", registry=registry).inc(5)
    http, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        url = f"http://127.0.0.1:{http.server_port}/metrics"
        assert MetricsCpu([url]).read()[url].seconds == 5
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/metrics", "nonsense", "http://127.0.0.1:90 1/x", "file:///etc/passwd"],
)
def test_metrics_that_cannot_be_read(url):
    with pytest.raises(ConfigError, match="--metrics"):
        MetricsCpu([url]).read()


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        ({"a": Usage(1, 5.0), "b": Usage(1, 3.0)}, 4.0),
        ({"a": Usage(2, 9.0), "b": Usage(1, 3.0)}, None),  # started again
        ({"a": Usage(1, 5.0), "b": Usage(1, 0.5)}, None),  # does not say when it started
        ({"a": Usage(1, 5.0)}, None),
    ],
)
def test_cpu_of_a_process_that_is_another_is_not_known(after, seconds):
    assert spent({"a": Usage(1, 2.0), "b": Usage(1, 2.0)}, after) == seconds


async def test_figures_stand_where_the_cpu_can_no_longer_be_read():
    class Once:
        def __init__(self):
            self.readings = [{"a": Usage(0, 1.0)}]

        def read(self):
            if not self.readings:
                raise ConfigError("gone")
            return self.readings.pop()

    async with serving(Fake()) as address:
        report = await run_load(address, plan(concurrency=1), cpu=Once())
    assert report.queries > 0
    assert report.cpu_seconds_per_1000_queries is None


async def test_a_rate_that_cannot_be_kept_is_told():
    begun = time.perf_counter()
    async with serving(Fake()) as address:
        report = await run_load(address, plan(rate=1e6, seconds=0.5, warm_up_seconds=0))
    assert time.perf_counter() - begun < 10
    assert report.statuses["NOT_SENT"] > 100_000
    assert report.errors >= report.statuses["NOT_SENT"]
    assert report.late_ms > 500
    assert report.offered_qps < 500_000


async def test_what_is_offered_is_counted_over_the_time_it_was_sent_in():
    async with serving(Fake(delay=30)) as address:
        report = await run_load(
            address, plan(rate=50.0, seconds=1.0, warm_up_seconds=0, timeout=2.0)
        )
    assert 25 < report.offered_qps < 80
    assert report.queries == 0


@pytest.mark.parametrize(
    "changes",
    [{}, {"rate": 1.0, "concurrency": 1}, {"rate": -1.0}, {"concurrency": 1, "texts": []}],
)
def test_plans_that_make_no_sense(changes):
    with pytest.raises(InvalidInput):
        plan(**changes)


def test_percentiles():
    outcomes = Outcomes()
    for number in range(1, 1001):
        outcomes.answered(number / 1e3, 0.0, 1.0)
    report = LoadReport.of("open", outcomes, 10.0, None)
    assert report.qps == 100
    assert report.p50_ms == pytest.approx(500.5)
    assert report.p999_ms == pytest.approx(np.percentile(np.arange(1, 1001), 99.9))
    assert report.max_ms == 1000

"""What tokens and TLS cost a call: ``python -m benchmarks.security``.

Processor time, not latency, so that a busy machine does not change the figures much: of client
and server together, which share a process here, for a call that does nothing.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import grpc
from prometheus_client import CollectorRegistry

from benchmarks.common import describe_machine, describe_run
from mach.serving.authentication import TokenInterceptor
from mach.serving.guard import TokenGuard
from mach.serving.interceptors import ErrorInterceptor, MetricsInterceptor
from mach.serving.metrics import ServerMetrics
from mach.tls import ClientTls, ServerTls, Tls
from mach.tokens import create_token
from mach.v1 import search_pb2, search_pb2_grpc
from tests.certificates import Authority

CALLS, ROUNDS = 200, 31


class Nothing(search_pb2_grpc.SearchServiceServicer):
    async def Search(self, request, context):  # noqa: N802 - named by the protocol
        return search_pb2.SearchResponse()


@asynccontextmanager
async def calls(directory: Path, *, tls: bool, tokens: bool):
    """What makes one call to a server guarded so."""
    registry = CollectorRegistry()
    interceptors = [MetricsInterceptor(ServerMetrics(registry)), ErrorInterceptor()]
    metadata = None
    if tokens:
        path = directory / "tokens.json"
        token = create_token(path, "benchmark", rate=1e9)
        metadata = (("authorization", f"Bearer {token}"),)
        guard = TokenGuard(path, registry)
        scopes = {"mach.v1.SearchService": "search"}
        interceptors.append(TokenInterceptor(guard, open_services=[], scopes=scopes))
    server = grpc.aio.server(interceptors=interceptors)
    search_pb2_grpc.add_SearchServiceServicer_to_server(Nothing(), server)
    if tls:
        authority = Authority(directory)
        files = authority.issue("both")
        own = ServerTls(files.certificate, files.key, authority.ca)
        port = server.add_secure_port("127.0.0.1:0", own.credentials())
        client = ClientTls(Tls(authority.ca, files.certificate, files.key))
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", client.credentials())
    else:
        port = server.add_insecure_port("127.0.0.1:0")
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    await server.start()
    search = search_pb2_grpc.SearchServiceStub(channel).Search
    request = search_pb2.SearchRequest()
    try:
        yield lambda: search(request, metadata=metadata)
    finally:
        await channel.close()
        await server.stop(0)


async def compare() -> None:
    """All four in turn, round by round, so that what else the machine does hits them alike."""
    variants = [(False, False), (False, True), (True, False), (True, True)]
    figures: list[list[float]] = [[] for _ in variants]
    async with AsyncExitStack() as stack:
        made = []
        for tls, tokens in variants:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            made.append(await stack.enter_async_context(calls(folder, tls=tls, tokens=tokens)))
        for round_ in range(ROUNDS):
            for call, found in zip(made, figures, strict=True):
                start = time.process_time()
                for _ in range(CALLS):
                    await call()
                if round_:  # the first connects and warms up
                    found.append((time.process_time() - start) / CALLS * 1e6)
    for name, found in zip(("neither", "tokens", "mutual TLS", "both"), figures, strict=True):
        more = [figure - plain for figure, plain in zip(found, figures[0], strict=True)]
        print(f"{name}: {median(found):.0f} µs a call, {median(more):+.0f} µs")


def guard_alone(directory: Path) -> float:
    """Microseconds in which a guard lets a call in."""
    path = directory / "tokens.json"
    token = create_token(path, "benchmark", rate=1e9)
    guard = TokenGuard(path, CollectorRegistry())
    metadata = (("user-agent", "x"), ("authorization", f"Bearer {token}"))
    figures = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(100 * CALLS):
            guard.admit(metadata, "search")
        figures.append((time.process_time() - start) / (100 * CALLS) * 1e6)
    return median(figures)


def main() -> None:
    print(describe_run(), describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        print(f"to let a call in: {guard_alone(Path(folder)):.1f} µs")
    asyncio.run(compare())


if __name__ == "__main__":
    main()

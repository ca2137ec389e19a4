"""Certificates and tokens of the clients, against a server in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from mach.client import AsyncMachClient, MachClient, Tls, connection
from mach.errors import ConfigError, InvalidInput, MachError, Unauthenticated, Unavailable
from mach.tls import ServerTls
from mach.v1 import search_pb2, search_pb2_grpc
from tests.certificates import Authority, write
from tests.servers import wait_until


class Servicer(search_pb2_grpc.SearchServiceServicer):
    """Answers with the token it was sent; "slow" takes a while."""

    def __init__(self):
        self.peers = set()

    def Search(self, request, context):
        self.peers.add(context.peer())
        if request.query.text == "slow":
            time.sleep(0.3)
        sent = dict(context.invocation_metadata()).get("authorization", "")
        if sent == "Bearer wrong":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "authorization: is not known")
        return search_pb2.SearchResponse(bundle_version=sent)


class Server:
    """A server whose certificates can be replaced."""

    def __init__(self, directory, *, mutual=False):
        self.authority = Authority(directory)
        self.files = self.authority.issue("server")
        ca = self.authority.ca if mutual else None
        self.tls = ServerTls(self.files.certificate, self.files.key, ca)
        self.servicer = Servicer()
        self._server = grpc.server(ThreadPoolExecutor(32))
        search_pb2_grpc.add_SearchServiceServicer_to_server(self.servicer, self._server)
        port = self._server.add_secure_port("127.0.0.1:0", self.tls.credentials())
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self):
        self._server.stop(0).wait()


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def mutual(tmp_path):
    server = Server(tmp_path, mutual=True)
    yield server
    server.stop()


@pytest.fixture(params=[MachClient, AsyncMachClient])
def ask(request):
    """One search with a client of either kind; returns the token that arrived."""

    def ask(address, **arguments):
        if request.param is MachClient:
            with MachClient(address, timeout=5, **arguments) as client:
                return client.search("x").bundle_version

        async def work():
            async with AsyncMachClient(address, timeout=5, **arguments) as client:
                return (await client.search("x")).bundle_version

        return asyncio.run(work())

    return ask


def test_an_encrypted_answer_and_a_token(server, ask):
    tls = Tls(ca=server.authority.ca)
    assert ask(server.address, tls=tls) == ""
    assert ask(server.address, tls=tls, token="secret") == "Bearer secret"
    assert ask(server.address, tls=tls, token=lambda: "fresh") == "Bearer fresh"
    credentials = grpc.ssl_channel_credentials(server.authority.ca.read_bytes())
    assert ask(server.address, tls=credentials) == ""
    with pytest.raises(Unauthenticated, match="is not known"):
        ask(server.address, tls=tls, token="wrong")


def test_a_server_that_is_not_the_right_one_is_refused(server, ask, tmp_path):
    with pytest.raises(Unavailable):
        ask(server.address)  # plain text
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        ask(server.address, tls=Tls())  # no public authority signed it
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        ask(server.address, tls=Tls(ca=Authority(tmp_path, "other").ca))
    with pytest.raises(Unavailable, match="Hostname"):
        ask(server.address, tls=Tls(server.authority.ca, server_name="elsewhere"))
    assert ask(server.address, tls=Tls(server.authority.ca, server_name="localhost")) == ""


def test_a_server_whose_certificate_has_expired_is_refused(server, ask):
    expired = server.authority.pem(days=-1)
    configuration = grpc.ssl_server_credentials([expired[::-1]])
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_secure_port("127.0.0.1:0", configuration)
    other.start()
    try:
        with pytest.raises(Unavailable, match="has expired"):
            ask(f"127.0.0.1:{port}", tls=Tls(server.authority.ca))
    finally:
        other.stop(0).wait()


def test_mutual_tls(mutual, ask):
    ca, files = mutual.authority.ca, mutual.authority.issue("client")
    assert ask(mutual.address, tls=Tls(ca, files.certificate, files.key)) == ""
    with pytest.raises(Unavailable):
        ask(mutual.address, tls=Tls(ca))


@pytest.mark.parametrize("client", [MachClient, AsyncMachClient])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tls": Tls(ca="none.pem")}, ConfigError, r"tls\.ca none\.pem: No such file"),
        ({"tls": Tls(key="a")}, ConfigError, r"tls\.key needs tls\.certificate as well"),
        ({"tls": "ca.pem"}, InvalidInput, "tls: must be a Tls, got str"),
        ({"token": ""}, InvalidInput, "token: is empty"),
        ({"token": "se cret"}, InvalidInput, "token: is not a bearer token$"),
        ({"token": "sécret"}, InvalidInput, "token: is not a bearer token$"),
        ({"token": "secret\n"}, InvalidInput, "token: is not a bearer token$"),
    ],
)
def test_mistakes_are_told_when_the_client_is_made(client, arguments, error, message):
    with pytest.raises(error, match=message):
        client("127.0.0.1:1", **arguments)


class Load:
    """What a client was answered while certificates changed."""

    def __init__(self):
        self.stop = threading.Event()
        self.answers = 0
        self.errors: list[MachError] = []

    def sync(self, client):
        while not self.stop.is_set():
            try:
                client.search("slow" if self.answers % 50 == 0 else "x")
                self.answers += 1
            except MachError as error:
                self.errors.append(error)

    async def asynchronous(self, client):
        while not self.stop.is_set():
            try:
                await client.search("slow" if self.answers % 50 == 0 else "x")
                self.answers += 1
            except MachError as error:
                self.errors.append(error)


def rotate(mutual, files):
    """Another authority signs everything: first trusted, then used, by both, then alone."""
    replaced = Authority(mutual.authority.directory, "next")
    both = mutual.authority.ca.read_bytes() + replaced.ca.read_bytes()
    write(mutual.authority.ca, both)
    assert mutual.tls.files.check()
    yield "trusted"
    certificate, key = replaced.pem()
    write(files.certificate, certificate)
    yield "half"
    write(files.key, key)
    yield "client"
    certificate, key = replaced.pem()
    write(mutual.files.certificate, certificate)
    write(mutual.files.key, key)
    assert mutual.tls.files.check()
    yield "server"


@pytest.fixture
def eager(monkeypatch):
    """Files are looked at before each call."""
    monkeypatch.setattr(connection, "_CHECK_SECONDS", 0.0)


def test_certificates_change_under_load_without_an_error(mutual, eager):
    files = mutual.authority.issue("client")
    tls = Tls(mutual.authority.ca, files.certificate, files.key)
    load = Load()
    with MachClient(mutual.address, timeout=5, tls=tls) as client:
        client.search("x")
        before = client._connection.current
        threads = [threading.Thread(target=load.sync, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for step in rotate(mutual, files):
            if step in ("trusted", "client"):
                wait_until(lambda old=before: client._connection.current is not old, "the other")
                before = client._connection.current
            time.sleep(0.2)
            assert client._connection.current is before
        load.stop.set()
        for thread in threads:
            thread.join()
        assert load.errors == []
        assert load.answers > 10
        assert len(mutual.servicer.peers) == 3  # each taken up by a connection of its own
        assert client._connection._next is None


async def test_certificates_change_under_load_without_an_error_in_asyncio(mutual, eager):
    files = mutual.authority.issue("client")
    tls = Tls(mutual.authority.ca, files.certificate, files.key)
    load = Load()
    async with AsyncMachClient(mutual.address, timeout=5, tls=tls) as client:
        await client.search("x")
        tasks = [asyncio.create_task(load.asynchronous(client)) for _ in range(4)]
        before = client._connection.current
        for step in rotate(mutual, files):
            if step in ("trusted", "client"):
                async with asyncio.timeout(20):
                    while client._connection.current is before:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                before = client._connection.current
            await asyncio.sleep(0.2)
            assert client._connection.current is before
        load.stop.set()
        await asyncio.gather(*tasks)
        assert load.errors == []
        assert load.answers > 10
        assert len(mutual.servicer.peers) == 3
        assert client._connection._next is None


def test_certificates_that_do_not_work_replace_none_that_do(mutual, eager, tmp_path):
    """A valid pair that the server does not accept: calls go on over what is connected."""
    files = mutual.authority.issue("client")
    with MachClient(
        mutual.address, timeout=5, tls=Tls(mutual.authority.ca, files.certificate, files.key)
    ) as client:
        client.search("x")
        before = client._connection.current
        certificate, key = Authority(tmp_path, "stranger").pem()
        write(files.certificate, certificate)
        write(files.key, key)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            client.search("x")
        assert client._connection.current is before
        mutual.authority.issue("client")  # and one that does
        end = time.monotonic() + 5
        while client._connection.current is before and time.monotonic() < end:
            client.search("x")
        assert client._connection.current is not before
        client.search("x")

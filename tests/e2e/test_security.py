"""A fleet closed to strangers: TLS on both hops, tokens, and every method of every service."""

from __future__ import annotations

import asyncio
import json
from urllib.request import urlopen

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mach.cli import main
from mach.client import AsyncMachClient, MachClient, Tls, connection
from mach.errors import MachError, PermissionDenied, Unauthenticated, Unavailable
from mach.fleet import LocalFleet
from mach.tokens import create_token, read_tokens, revoke_token
from mach.v1 import admin_pb2, admin_pb2_grpc
from tests.certificates import Authority, write
from tests.servers import wait_until

HEALTH = "grpc.health.v1.Health"
SHARD_NAME = "shard.fleet.internal"


class ClosedFleet:
    """Certificates, tokens, and a fleet that asks for all of them."""

    def __init__(self, directory, bundle):
        self.authority = Authority(directory)
        self.aggregator = self.authority.issue("aggregator")
        self.shard = self.authority.issue("shard", [SHARD_NAME])
        self.to_shards = self.authority.issue("to-shards", ["aggregator"])
        self.client = self.authority.issue("client", ["backend"])
        self.tokens = directory / "tokens.json"
        self.search = create_token(self.tokens, "search")
        self.admin = create_token(self.tokens, "admin", scopes=["admin"])
        guards = [
            *("--tls-client-ca", str(self.authority.ca)),
            *("--tokens", str(self.tokens)),
            *("--admin-listen", "127.0.0.1:0"),
            *("--reload-seconds", "0.1"),
        ]
        self.fleet = LocalFleet(
            bundle,
            num_shards=2,
            directory=directory / "logs",
            shard_arguments=[*pair_flags("tls", self.shard), *guards],
            aggregator_arguments=[
                *pair_flags("tls", self.aggregator),
                *guards,
                *("--shard-ca", str(self.authority.ca)),
                *pair_flags("shard", self.to_shards),
                *("--shard-server-name", SHARD_NAME),
                *("--straggler-seconds", "4"),  # none is given up because the machine is busy
            ],
        )

    @property
    def tls(self):
        return Tls(self.authority.ca, self.client.certificate, self.client.key)

    def channel(self, address, name=None):
        credentials = grpc.ssl_channel_credentials(
            self.authority.ca.read_bytes(),
            self.client.key.read_bytes(),
            self.client.certificate.read_bytes(),
        )
        options = [("grpc.ssl_target_name_override", name)] if name else []
        return grpc.secure_channel(address, credentials, options)

    def ports(self):
        """Every gRPC port: address, name in its certificate, services that need no token."""
        assert self.fleet.aggregator is not None
        yield self.fleet.aggregator.address, None, {HEALTH}
        yield self.fleet.aggregator.admin, None, {HEALTH}
        for shard in self.fleet.shards:
            yield shard.address, SHARD_NAME, {HEALTH, "mach.v1.ShardService"}
            yield shard.admin, SHARD_NAME, {HEALTH}


def pair_flags(prefix, files):
    return [f"--{prefix}-certificate", str(files.certificate), f"--{prefix}-key", str(files.key)]


@pytest.fixture(scope="module")
def closed(tmp_path_factory, tiny_bundle):
    closed = ClosedFleet(tmp_path_factory.mktemp("closed"), tiny_bundle)
    with closed.fleet:
        yield closed


def methods_of(channel, token):
    """Every method that a port offers, as (service, method descriptor), by reflection."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    metadata = [("authorization", f"Bearer {token}")]

    def ask(**request):
        message = reflection_pb2.ServerReflectionRequest(**request)
        (answer,) = stub.ServerReflectionInfo(iter([message]), metadata=metadata, timeout=5)
        return answer

    pool, added = DescriptorPool(), set()

    def add(files):
        from google.protobuf.descriptor_pb2 import FileDescriptorProto

        for data in files:
            file = FileDescriptorProto.FromString(data)
            for dependency in file.dependency:
                if dependency not in added:
                    add(ask(file_by_filename=dependency).file_descriptor_response
                        .file_descriptor_proto)  # fmt: skip
            if file.name not in added:
                added.add(file.name)
                pool.Add(file)

    for service in ask(list_services="").list_services_response.service:
        answer = ask(file_containing_symbol=service.name)
        add(answer.file_descriptor_response.file_descriptor_proto)
        for method in pool.FindServiceByName(service.name).methods:
            yield service.name, method


def call(channel, service, method, metadata):
    """The status of a call with an empty request."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_" + (
        "stream" if method.server_streaming else "unary"
    )
    make = getattr(channel, kind)(f"/{service}/{method.name}")
    request = iter([b""]) if method.client_streaming else b""
    try:
        answer = make(request, metadata=metadata, timeout=5)
        if method.server_streaming:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_every_method_but_health_refuses_without_a_token(closed):
    seen = set()
    for address, name, open_services in closed.ports():
        with closed.channel(address, name) as channel:
            for service, method in list(methods_of(channel, closed.admin)):
                seen.add(service)
                for sent in ([], [("authorization", "Bearer mach_00000000_" + "a" * 43)]):
                    status = call(channel, service, method, sent)
                    refused = status is grpc.StatusCode.UNAUTHENTICATED
                    assert refused == (service not in open_services), (service, method.name, status)
    assert seen == {
        HEALTH,
        "grpc.reflection.v1alpha.ServerReflection",
        "mach.v1.AdminService",
        "mach.v1.SearchService",
        "mach.v1.ShardService",
    }


def test_no_port_answers_without_a_certificate(closed):
    for address, name, _ in closed.ports():
        options = [("grpc.ssl_target_name_override", name)] if name else []
        credentials = grpc.ssl_channel_credentials(closed.authority.ca.read_bytes())
        for channel in (
            grpc.insecure_channel(address),
            grpc.secure_channel(address, credentials, options),
        ):
            with channel:
                check = channel.unary_unary(f"/{HEALTH}/Check")
                with pytest.raises(grpc.RpcError) as caught:
                    check(b"", timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE, address


def test_scopes(closed):
    assert closed.fleet.aggregator is not None
    with (
        MachClient(closed.fleet.address, timeout=5, tls=closed.tls, token=closed.admin) as client,
        pytest.raises(PermissionDenied, match="the token admin is for admin, not for search"),
    ):
        client.search("drill")
    request = admin_pb2.DescribeBundlesRequest()
    for server, name in ((closed.fleet.aggregator, None), (closed.fleet.shards[0], SHARD_NAME)):
        with closed.channel(server.admin, name) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            metadata = [("authorization", f"Bearer {closed.admin}")]
            assert stub.DescribeBundles(request, metadata=metadata, timeout=5).bundles[0].active
            metadata = [("authorization", f"Bearer {closed.search}")]
            with pytest.raises(grpc.RpcError) as caught:
                stub.DescribeBundles(request, metadata=metadata, timeout=5)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_token_revoked_while_connected_is_refused_at_the_next_call(closed, tiny_bundle):
    title = tiny_bundle.catalog.table["title"][0].as_py()
    token = create_token(closed.tokens, "short-lived")

    def refused(client):
        try:
            client.search(title)
        except Unauthenticated:
            return True
        return False

    with MachClient(closed.fleet.address, timeout=5, tls=closed.tls, token=token) as client:
        wait_until(lambda: not refused(client), "the new token")
        assert client.search(title).coverage.complete
        revoke_token(closed.tokens, "short-lived")
        wait_until(lambda: refused(client), "the refusal")


def test_a_batch_is_charged_by_its_queries(closed, tiny_bundle):
    titles = tiny_bundle.catalog.table["title"].to_pylist()
    token = create_token(closed.tokens, "batches", rate=0.001, burst=10)
    with MachClient(closed.fleet.address, timeout=5, tls=closed.tls, token=token) as client:
        wait_until(lambda: accepts(client, titles[:9]), "the new token")
        with pytest.raises(MachError, match=r"allows 0\.001 queries a second") as caught:
            client.search_batch(titles[:9])
        assert caught.value.retry_after_ms > 1_000_000


def accepts(client, queries):
    try:
        return bool(client.search_batch(queries))
    except Unauthenticated:
        return False


def test_the_commands_talk_to_it(closed, tiny_bundle, tmp_path, monkeypatch, capsys):
    title = tiny_bundle.catalog.table["title"][0].as_py()
    secret = tmp_path / "token"
    secret.write_text(closed.search + "\n")
    flags = [
        *("--address", closed.fleet.address),
        *("--tls-ca", str(closed.authority.ca)),
        *pair_flags("tls", closed.client),
    ]

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, " ".join(printed.err.split())

    search = ["search", title, "--json", *flags]
    code, out, _ = run(*search, "--token-file", str(secret))
    assert code == 0 and json.loads(out)["coverage"]["answered"] == 4
    monkeypatch.setenv("MACH_TOKEN", closed.search)
    assert run(*search)[0] == 0
    monkeypatch.setenv("MACH_TOKEN", closed.search[:-1])
    code, _, said = run(*search)
    assert code == 2 and "authorization: " in said and closed.search[:-1] not in said
    code, _, said = run("search", title, "--tls-key", "x")
    assert code == 2 and "--tls-key needs --tls-certificate as well" in said
    code, _, said = run("search", title, "--tls-server-name", "x")
    assert code == 2 and "--tls-server-name needs --tls or --tls-ca" in said
    code, _, said = run(*search, "--token-file", str(tmp_path / "none"))
    assert code == 2 and "none: No such file" in said
    log = tmp_path / "log.csv"
    log.write_text(f"query,product_id\n{title},1\n")
    bench = ["bench", "fleet", "--queries", str(log), "--seconds", "0.3", "--warm-up", "0"]
    figures = tmp_path / "figures.json"
    token = ["--token-file", str(secret)]
    assert run(*bench, *flags, *token, "--json", str(figures))[0] == 0
    measured = json.loads(figures.read_text())
    assert measured["queries"] > 0 and measured["errors"] == 0


async def test_all_certificates_change_under_load_without_an_error(
    closed, tiny_bundle, monkeypatch
):
    """Another authority signs for both hops: trusted first, then used, then alone."""
    monkeypatch.setattr(connection, "_CHECK_SECONDS", 0.05)
    titles = tiny_bundle.catalog.table["title"].to_pylist()
    replaced = Authority(closed.authority.directory, "next")
    answers, errors, stop = [], [], asyncio.Event()

    async def load(client):
        while not stop.is_set():
            try:
                answers.append(await client.search(titles[len(answers) % 200]))
            except MachError as error:
                errors.append(error)

    def exchange(files, names):
        certificate, key = replaced.pem(names)
        write(files.certificate, certificate)
        write(files.key, key)

    pem = (closed.authority.ca, closed.client.key, closed.client.certificate)
    credentials = grpc.ssl_channel_credentials(*(path.read_bytes() for path in pem))

    async def is_refused():
        """Whether a client with the certificates from before can connect no more."""
        async with AsyncMachClient(
            closed.fleet.address, timeout=5, tls=credentials, token=closed.search
        ) as old:
            try:
                await old.search(titles[0])
            except Unavailable:
                return True
        return False

    async with AsyncMachClient(
        closed.fleet.address, timeout=5, tls=closed.tls, token=closed.search
    ) as client:
        tasks = [asyncio.create_task(load(client)) for _ in range(4)]
        write(closed.authority.ca, closed.authority.ca.read_bytes() + replaced.ca.read_bytes())
        await asyncio.sleep(0.4)
        exchange(closed.shard, [SHARD_NAME])
        exchange(closed.aggregator, ["localhost", "127.0.0.1"])
        exchange(closed.to_shards, ["aggregator"])
        exchange(closed.client, ["backend"])
        await asyncio.sleep(1.0)
        # From now on what the old authority signed is worth nothing.
        write(closed.authority.ca, replaced.ca.read_bytes())
        async with asyncio.timeout(20):
            while not await is_refused():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        answered = len(answers)
        while len(answers) < answered + 20:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*tasks)
    assert errors == []
    assert answered > 20
    assert all(answer.coverage.complete for answer in answers)
    for shard in closed.fleet.shards:  # and the aggregator connected anew
        wait_until(lambda shard=shard: streams_begun(shard) >= 2, "another stream")


def streams_begun(shard):
    with urlopen(f"http://{shard.metrics}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    name = 'grpc_server_started_total{grpc_method="PredictStream"'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_no_log_line_has_a_token_or_a_query(closed, tiny_bundle):
    logs = "".join(path.read_text() for path in (closed.fleet.directory).glob("*.log"))
    assert "listening on" in logs
    assert "Bearer" not in logs
    for token in (closed.search, closed.admin):
        assert token[14:] not in logs
    assert len(read_tokens(closed.tokens).tokens) >= 2
    for title in tiny_bundle.catalog.table["title"].to_pylist():
        assert title not in logs

"""TLS to the shards: whose name counts, and a connection made anew without a loss."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from aggregator.fanout import Target
from aggregator.service import connect
from aggregator.settings import AggregatorSettings
from aggregator.transport import Payload, RenewingTransport
from mach.errors import ConfigError, Unavailable
from mach.serving import load_settings
from mach.tls import ClientTls, Tls
from mach.v1 import shard_pb2, shard_pb2_grpc
from tests.aggregator.fakes import FakeShard, fake_fleet
from tests.certificates import Authority


class Certificates:
    """Something that changes, and the connections made with it."""

    def __init__(self, loaded):
        self.now = object()
        self.made = []
        self._loaded = loaded
        self.error = None
        self.transport = RenewingTransport(self._connect, lambda: self.now)

    def _connect(self):
        shard = FakeShard(self._loaded, "shard:1")
        shard.describe_error = self.error
        self.made.append(shard)
        return shard


@pytest.fixture
async def certificates(load):
    certificates = Certificates(load(1))
    yield certificates
    await certificates.transport.close()


@pytest.fixture
def payload(served, titles):
    return Payload(served.featurizer.batch(titles[:2]), served.version, shard_pb2.ENCODING_UINT8)


def start(transport, payload):
    future = asyncio.get_running_loop().create_future()
    return future, transport.predict(payload, (1,), 5.0, future.set_result)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_nothing_changes_while_the_certificates_do_not(certificates):
    for _ in range(3):
        assert (await certificates.transport.describe(1.0)).repetitions == (1,)
    assert len(certificates.made) == 1
    assert certificates.transport.address == "shard:1"


async def test_the_next_question_connects_anew_and_what_is_on_its_way_arrives(
    certificates, payload
):
    old = certificates.made[0]
    old.delay = 0.1
    first, _ = start(certificates.transport, payload)
    withdrawn, withdraw = start(certificates.transport, payload)
    certificates.now = object()
    await certificates.transport.describe(1.0)
    withdraw()
    second, _ = start(certificates.transport, payload)
    fresh = certificates.made[1]
    assert (len(old.sizes), len(fresh.sizes)) == (2, 1)
    assert isinstance(await second, shard_pb2.PredictResponse)
    assert not old.closed
    assert isinstance(await first, shard_pb2.PredictResponse)
    await until(lambda: old.closed)
    assert not fresh.closed and not withdrawn.done()
    assert old.withdrawn == 1


async def test_certificates_that_do_not_work_replace_no_connection(certificates, caplog):
    certificates.now = object()
    certificates.error = Unavailable("handshake failed")
    for _ in range(3):
        assert (await certificates.transport.describe(1.0)).repetitions == (1,)
    assert [shard.closed for shard in certificates.made] == [False, True, True, True]
    assert [record.message for record in caplog.records] == [
        "shard shard:1 does not answer with the new certificates, the connection before is "
        "kept: handshake failed"
    ]
    certificates.error = None
    await certificates.transport.describe(1.0)
    await until(lambda: certificates.made[0].closed)
    assert not certificates.made[-1].closed


async def test_only_the_connection_in_use_can_break(certificates):
    said = []
    certificates.transport.on_broken = said.append
    certificates.made[0].break_off()
    certificates.now = object()
    await certificates.transport.describe(1.0)
    certificates.made[0].break_off()
    assert said == ["connection reset"]
    certificates.made[1].break_off()
    assert said == ["connection reset"] * 2


async def test_shards_found_by_name_must_have_that_name(served, load):
    async def resolve(host, port):
        assert host == "shards.example.com."
        return ["10.0.0.1:1", "shard0:1"]

    loaded = {"shard0:1": load(0), "10.0.0.1:1": load(1, 2, 3)}
    targets = ["shard0:1", "dns:///shards.example.com.:1"]
    assert Target.parse(targets[1]).is_name
    async with fake_fleet(served, loaded, targets=targets, resolve=resolve) as fleet:
        assert fleet.names == {"shard0:1": "", "10.0.0.1:1": "shards.example.com"}


class Described(shard_pb2_grpc.ShardServiceServicer):
    async def DescribeShard(self, request, context):
        return shard_pb2.DescribeShardResponse(bundle_version="v", repetitions=[1])


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_shard_must_have_the_name_it_was_found_by_or_the_one_set(tmp_path, kind):
    authority = Authority(tmp_path)
    certificate, key = authority.pem(["shards.example.com"])
    server = grpc.aio.server()
    shard_pb2_grpc.add_ShardServiceServicer_to_server(Described(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()

    async def ask(name, server_name="", ca=authority.ca):
        transport = connect(
            f"127.0.0.1:{port}",
            name,
            transport=kind,
            max_message_bytes=1 << 20,
            tls=ClientTls(Tls(ca, server_name=server_name)),
        )
        try:
            return (await transport.describe(5.0)).repetitions
        finally:
            await transport.close()

    try:
        assert await ask("shards.example.com") == (1,)
        assert await ask("", "shards.example.com") == (1,)
        assert await ask("elsewhere.example.com", "shards.example.com") == (1,)
        for name in ("", "elsewhere.example.com"):
            with pytest.raises(Unavailable, match="Hostname"):
                await ask(name)
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await ask("shards.example.com", ca=Authority(tmp_path, "other").ca)
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard-key", "a"], "--shard-key needs --shard-certificate as well"),
        (["--shard-certificate", "a"], "--shard-certificate needs --shard-key as well"),
        (
            ["--shard-certificate", "a", "--shard-key", "b"],
            "--shard-certificate needs --shard-ca as well",
        ),
        (["--shard-server-name", "a"], "--shard-server-name needs --shard-ca as well"),
    ],
)
def test_half_a_configuration_is_refused(flags, message):
    required = ["--bundle", "b", "--shards", "a:1"]
    with pytest.raises(ConfigError, match=message):
        load_settings(AggregatorSettings, [*required, *flags], program="aggregator")


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    flags = ["--bundle", "b", "--shards", "a:1", "--shard-ca", str(tmp_path / "none")]
    settings = load_settings(AggregatorSettings, flags, program="aggregator")
    with pytest.raises(ConfigError, match=r"--shard-ca .*none: No such file"):
        _ = settings.shard_tls

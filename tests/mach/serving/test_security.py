"""Who gets in: certificates and tokens, seen from outside a server process."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from mach.errors import ConfigError
from mach.reloading import Reloaded
from mach.serving import ServingSettings, Watched, load_settings
from mach.serving.security import Security
from mach.tokens import create_token, revoke_token
from mach.v1 import shard_pb2, shard_pb2_grpc
from tests.certificates import Authority, write
from tests.servers import ServerProcess, assert_one_sentence, run_server, wait_until

#: Streams of these tests wait for it; set at the end.
done = threading.Event()
SAMPLE = "tests/mach/serving/sample_server.py"


class Guarded:
    """A server with all the guards, and what gets through them."""

    def __init__(self, directory):
        self.directory = directory
        self.authority = Authority(directory)
        self.stranger = Authority(directory, "stranger")
        self.server_files = self.authority.issue("server")
        self.client_files = self.authority.issue("client")
        self.tokens = directory / "tokens.json"
        self.token = create_token(self.tokens, "caller")
        self.server = ServerProcess(
            SAMPLE,
            *("--tls-certificate", str(self.server_files.certificate)),
            *("--tls-key", str(self.server_files.key)),
            *("--tls-client-ca", str(self.authority.ca)),
            *("--tokens", str(self.tokens)),
            *("--health-listen", "127.0.0.1:0"),
            *("--reload-seconds", "0.05"),
        )

    def channel(self, ca=None, files=None, name=None):
        """A channel; with the right certificates where not told otherwise."""
        files = files or self.client_files
        credentials = grpc.ssl_channel_credentials(
            (ca or self.authority.ca).read_bytes(),
            files and files.key.read_bytes(),
            files and files.certificate.read_bytes(),
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        if name:
            options.append(("grpc.ssl_target_name_override", name))
        return grpc.secure_channel(self.server.address, credentials, options)

    def predict(self, channel, version="x", token=None):
        token = self.token if token is None else token
        metadata = [("authorization", f"Bearer {token}")] if token else []
        return shard_pb2_grpc.ShardServiceStub(channel).Predict(
            shard_pb2.PredictRequest(bundle_version=version), metadata=metadata, timeout=5
        )

    def status(self, channel, **arguments):
        """OK, or the code and message of a failed call."""
        with channel:
            try:
                self.predict(channel, **arguments)
            except grpc.RpcError as error:
                return f"{error.code().name}: {error.details()}"
        return "OK"

    def reloads(self, file, outcome):
        name = f'mach_file_reloads_total{{file="{file}",outcome="{outcome}"}}'
        return self.server.metrics()[name]

    @contextlib.contextmanager
    def taken_up(self, file, outcome="ok"):
        before = self.reloads(file, outcome)
        yield
        wait_until(lambda: self.reloads(file, outcome) == before + 1, "the reload")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    with guarded.server:
        yield guarded
        done.set()


def test_who_has_certificate_and_token_gets_in(guarded):
    assert guarded.status(guarded.channel()) == "OK"


def test_plain_text_is_refused(guarded):
    channel = grpc.insecure_channel(guarded.server.address)
    assert guarded.status(channel).startswith("UNAVAILABLE")


def test_a_client_without_a_certificate_is_refused(guarded):
    credentials = grpc.ssl_channel_credentials(guarded.authority.ca.read_bytes())
    channel = grpc.secure_channel(guarded.server.address, credentials)
    assert guarded.status(channel).startswith("UNAVAILABLE")


@pytest.mark.parametrize("whose", ["another authority's", "expired"])
def test_a_client_with_a_wrong_certificate_is_refused(guarded, whose):
    files = (
        guarded.authority.issue("expired", days=-1)
        if whose == "expired"
        else guarded.stranger.issue("stranger-client")
    )
    assert guarded.status(guarded.channel(files=files)).startswith("UNAVAILABLE")


def test_a_client_knows_another_authority_and_refuses_the_server(guarded):
    channel = guarded.channel(ca=guarded.stranger.ca)
    assert "CERTIFICATE_VERIFY_FAILED" in guarded.status(channel)


def test_a_client_wants_another_name_and_refuses_the_server(guarded):
    status = guarded.status(guarded.channel(name="elsewhere.example.com"))
    assert status.startswith("UNAVAILABLE") and "Hostname" in status


@pytest.mark.parametrize("token", ["", "wrong", "mach_00000000_" + "a" * 43])
def test_no_token_or_a_wrong_one_is_refused(guarded, token):
    status = guarded.status(guarded.channel(), token=token)
    assert status.startswith("UNAUTHENTICATED: authorization: ")
    assert not token or token not in status


def test_the_health_port_needs_neither_and_has_nothing_else(guarded):
    assert guarded.server.health() == "SERVING"  # asked over the health port
    with guarded.channel() as channel:  # and over the others, with a certificate, without a token
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(guarded.server.health_address) as channel:
        assert guarded.status(channel).startswith("UNIMPLEMENTED")
    with grpc.insecure_channel(guarded.server.health_address) as channel:
        reflect = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(reflect(iter([b""]), timeout=5))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_token_revoked_while_connected_ends_its_streams_and_its_next_call(guarded):
    with guarded.taken_up("tokens"):
        token = create_token(guarded.tokens, "short-lived")
    metadata = [("authorization", f"Bearer {token}")]
    with guarded.channel() as channel, guarded.channel() as other:
        stub = shard_pb2_grpc.ShardServiceStub(channel)
        stream = stub.PredictStream(one_and_wait(1), metadata=metadata, timeout=20)
        kept = shard_pb2_grpc.ShardServiceStub(other).PredictStream(
            one_and_wait(2),
            metadata=[("authorization", f"Bearer {guarded.token}")],
            timeout=20,
        )
        assert (next(stream).id, next(kept).id) == (1, 2)
        assert guarded.predict(channel, token=token)
        with guarded.taken_up("tokens"):
            revoke_token(guarded.tokens, "short-lived")
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "the token short-lived was revoked" in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            guarded.predict(channel, token=token)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert kept.is_active()
        kept.cancel()
        assert guarded.predict(channel)


def one_and_wait(number):
    """A request, then none for as long as the stream is open."""
    yield shard_pb2.PredictStreamRequest(id=number)
    done.wait()


def test_a_rate_is_a_status_with_a_time_to_come_back(guarded):
    with guarded.taken_up("tokens"):
        token = create_token(guarded.tokens, "slow", rate=0.01, burst=1)
    with guarded.channel() as channel:
        assert guarded.predict(channel, token=token)
        with pytest.raises(grpc.RpcError) as caught:
            guarded.predict(channel, token=token)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    (pushback,) = [v for k, v in caught.value.trailing_metadata() if k == "grpc-retry-pushback-ms"]
    assert 90_000 < int(pushback) <= 100_000
    calls = guarded.server.metrics()
    assert calls['mach_auth_calls_total{outcome="rate_limited",token="slow"}'] == 1
    assert calls['mach_auth_calls_total{outcome="ok",token="slow"}'] == 1
    assert calls['mach_auth_calls_total{outcome="unauthenticated",token=""}'] >= 3


def test_a_broken_token_file_changes_nothing_and_is_told_of_once(guarded):
    before = guarded.tokens.read_bytes()
    with guarded.taken_up("tokens", "failed"):
        write(guarded.tokens, b'{"tokens": [{"sha256": "hush"}]}')
    assert guarded.status(guarded.channel()) == "OK"
    with guarded.taken_up("tokens", "failed"):
        guarded.tokens.unlink()
    assert guarded.status(guarded.channel()) == "OK"
    write(guarded.tokens, before)
    said = [line for line in guarded.server.stderr.splitlines() if "not taken up" in line]
    assert len(said) == 2
    assert "tokens.0.id" in said[0] and "No such file" in said[1]
    assert "hush" not in guarded.server.stderr


def test_certificates_are_exchanged_while_the_server_runs(guarded):
    """Another authority signs; a half-written pair is not taken up; open connections go on."""
    replaced = Authority(guarded.directory, "next")
    certificate, key = replaced.pem()
    with guarded.channel() as before:
        assert guarded.predict(before)
        with guarded.taken_up("tls", "failed"):
            write(guarded.server_files.certificate, certificate)
        assert "--tls-key" in guarded.server.stderr.splitlines()[-1]
        assert guarded.status(guarded.channel()) == "OK"
        with guarded.taken_up("tls"):
            write(guarded.server_files.key, key)
        assert guarded.status(guarded.channel(ca=replaced.ca)) == "OK"
        assert "CERTIFICATE_VERIFY_FAILED" in guarded.status(guarded.channel())
        assert guarded.predict(before)
        # Whom the server trusts changes as well.
        files = replaced.issue("new-client")
        both = guarded.authority.ca.read_bytes() + replaced.ca.read_bytes()
        assert guarded.status(guarded.channel(replaced.ca, files)).startswith("UNAVAILABLE")
        with guarded.taken_up("tls"):
            write(guarded.authority.ca, both)
        assert guarded.status(guarded.channel(replaced.ca, files)) == "OK"
        assert guarded.status(guarded.channel(replaced.ca)) == "OK"
    expiry = guarded.server.metrics()['mach_tls_certificate_expiry_timestamp_seconds{file="tls"}']
    assert expiry > 0


async def test_what_nobody_foresaw_does_not_end_the_watch(tmp_path, caplog):
    create_token(tmp_path / "tokens.json", "a")
    (tmp_path / "file").write_text("0")
    seen = []

    def changed():
        seen.append(files.value)
        raise RuntimeError("a defect")

    files = Reloaded("file", [tmp_path / "file"], (tmp_path / "file").read_text)
    security = Security(
        ServingSettings(tokens=tmp_path / "tokens.json", reload_seconds=0.05),
        CollectorRegistry(),
        scopes={},
        open_services=[],
        watched=[Watched(files, changed=changed)],
    )
    ended = []

    async def end_streams():
        ended.append(0)
        raise RuntimeError("another defect")

    security.interceptors[0].end_streams = end_streams
    watching = asyncio.create_task(security.watch())
    for text in ("10", "200"):
        (tmp_path / "file").write_text(text)
        async with asyncio.timeout(5):
            while text not in seen:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    async with asyncio.timeout(5):
        while len(ended) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert not watching.done()
    watching.cancel()
    assert "a defect" in caplog.text and "another defect" in caplog.text


def test_the_log_has_no_token(guarded):
    assert guarded.token[14:] not in guarded.server.stderr
    assert "Bearer" not in guarded.server.stderr


HALF = [
    (["--tls-certificate", "a"], "--tls-certificate needs --tls-key as well"),
    (["--tls-key", "a"], "--tls-key needs --tls-certificate as well"),
    (["--tls-client-ca", "a"], "--tls-client-ca needs --tls-certificate and --tls-key as well"),
    (["--health-listen", "9000"], "is not HOST:PORT"),
    (["--reload-seconds", "0"], "--reload-seconds"),
]


@pytest.mark.parametrize(("flags", "message"), HALF)
def test_half_a_configuration_is_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(ServingSettings, flags, program="server")


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--tls-certificate", "{ca}", "--tls-key", "{key}"], ["--tls-key", "is not the key of"]),
        (["--tls-certificate", "{none}", "--tls-key", "{key}"], ["--tls-certificate", "No such"]),
        (["--tls-key", "{key}"], ["--tls-key needs --tls-certificate"]),
        (["--tokens", "{key}"], ["--tokens", "is not valid JSON"]),
    ],
)
def test_a_server_that_cannot_be_guarded_does_not_start(tmp_path, flags, fragments):
    authority = Authority(tmp_path)
    files = authority.issue("server")
    paths = {"ca": authority.ca, "key": files.key, "none": tmp_path / "none"}
    result = run_server(
        [SAMPLE, "--listen", "127.0.0.1:0", *(flag.format(**paths) for flag in flags)]
    )
    assert_one_sentence(result, *fragments)


def test_nothing_listens_beyond_this_machine_unless_told_to():
    settings = ServingSettings()
    assert settings.listen.startswith("127.0.0.1:")
    others = {name for name in ServingSettings.model_fields if name.endswith("_listen")}
    assert others == {"metrics_listen", "admin_listen", "health_listen"}
    assert all(getattr(settings, name) is None for name in others)

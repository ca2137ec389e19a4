"""Tracing is what the environment says, or an error at the start."""

import socket
import time

import pytest

from mach.errors import ConfigError
from mach.tracing.setup import check_environment
from mach.v1 import shard_pb2, shard_pb2_grpc
from tests.servers import ServerProcess, assert_one_sentence, run_server, wait_until

SAMPLE = "tests/mach/serving/sample_server.py"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HERE = "http://127.0.0.1:4317"

#: Runs the module named by its first argument, and says at its end what was imported.
REPORTING = """
import atexit, runpy, sys
name = sys.argv.pop(1)
atexit.register(
    lambda: print("opentelemetry:", any(m.startswith("opentelemetry") for m in sys.modules),
                  file=sys.stderr)
)
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        ({ENDPOINT: ""}, None),
        ({ENDPOINT: HERE}, HERE),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector", ENDPOINT: HERE},
         "https://collector"),
        ({ENDPOINT: HERE, "OTEL_SDK_DISABLED": "true"}, None),
        ({ENDPOINT: HERE, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({ENDPOINT: HERE, "OTEL_TRACES_EXPORTER": "otlp"}, HERE),
        ({ENDPOINT: HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, HERE),
        ({ENDPOINT: HERE, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
          "OTEL_TRACES_SAMPLER_ARG": "0.01"}, HERE),
    ],
)  # fmt: skip
def test_an_endpoint_turns_it_on(environment, endpoint):
    assert check_environment(environment) == endpoint


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (ENDPOINT, "collector:4317"),
        (ENDPOINT, "http://:4317"),
        (ENDPOINT, "http://collector:port"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none.pem"),
        ("OTEL_TRACES_EXPORTER", "jaeger"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ("OTEL_TRACES_SAMPLER_ARG", "a tenth"),
    ],
)
def test_a_mistake_is_named(variable, value):
    environment = {ENDPOINT: HERE, "OTEL_TRACES_SAMPLER": "traceidratio", variable: value}
    with pytest.raises(ConfigError, match=f"^{variable}: .*{value}"):
        check_environment(environment)


def test_without_the_packages_a_server_says_what_to_install():
    code = (
        "import runpy, sys; sys.modules['opentelemetry.sdk'] = None; "
        "sys.argv = ['sample', '--listen', '127.0.0.1:0']; "
        f"runpy.run_path({SAMPLE!r}, run_name='__main__')"
    )
    done = run_server(["-c", code], {ENDPOINT: HERE})
    assert_one_sentence(done, "tracing is not installed", "pip install 'mach-fleet[trace]'")


def test_a_wrong_sampler_ends_a_server():
    done = run_server(
        [SAMPLE, "--listen", "127.0.0.1:0"], {ENDPOINT: HERE, "OTEL_TRACES_SAMPLER": "sometimes"}
    )
    assert_one_sentence(done, "OTEL_TRACES_SAMPLER", "'sometimes'")


def test_a_timeout_that_is_no_number_ends_a_server():
    environment = {ENDPOINT: HERE, "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}
    done = run_server([SAMPLE, "--listen", "127.0.0.1:0"], environment)
    assert_one_sentence(done, "tracing cannot be set up", "'soon'")


@pytest.mark.parametrize(
    ("program", "on"), [("shard_server", False), ("aggregator", False), ("shard_server", True)]
)
def test_off_imports_nothing_of_it(tiny_bundle, program, on):
    flags = {"shard_server": ["--repetition", "0"], "aggregator": ["--shards", "127.0.0.1:1"]}
    server = ServerProcess(
        "-c", REPORTING, program, "--bundle", str(tiny_bundle.path), *flags[program],
        env={ENDPOINT: HERE} if on else {}, serving=False,
    )  # fmt: skip
    with server:
        wait_until(lambda: "bundle loaded" in server.stderr, "the bundle")
        assert server.stop() == 0
        assert f"opentelemetry: {on}" in server.stderr


@pytest.mark.parametrize("connects", [False, True])
def test_a_collector_that_is_away_holds_no_server_up(connects):
    """It refuses connections, or takes them and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if not connects:
            silent.close()
        environment = {ENDPOINT: f"http://127.0.0.1:{port}", "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with ServerProcess(SAMPLE, env=environment) as server:
            with server.channel() as channel:
                shard_pb2_grpc.ShardServiceStub(channel).Predict(
                    shard_pb2.PredictRequest(),
                    metadata=[("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")],
                    timeout=5,
                )
            time.sleep(0.2)  # an export is under way
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 6
            assert "Traceback" not in server.stderr

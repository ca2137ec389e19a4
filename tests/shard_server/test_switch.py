"""A running shard is given another bundle, and answers all the while."""

import shutil
import threading
from contextlib import contextmanager

import grpc
import pytest

from mach.bundle import repetition_file
from mach.v1 import admin_pb2, admin_pb2_grpc, shard_pb2, shard_pb2_grpc
from tests.bundles import make_bundle
from tests.servers import ServerProcess, wait_until


@pytest.fixture(scope="module")
def root(tiny_bundle, tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    shutil.copytree(tiny_bundle.path, root / "first")
    make_bundle(root / "second", seed=1)
    make_bundle(root / "small", num_repetitions=1)
    shutil.copytree(root / "second", root / "damaged")
    model = root / "damaged" / repetition_file(2)
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    return root


@pytest.fixture(scope="module")
def server(root):
    arguments = ["-m", "shard_server", "--bundle", str(root / "first"), "--repetition", "2"]
    with ServerProcess(*arguments, "--admin-listen", "127.0.0.1:0") as server:
        yield server


@pytest.fixture
def admin(server):
    with grpc.insecure_channel(server.admin_address) as channel:
        yield admin_pb2_grpc.AdminServiceStub(channel)


def load(admin, path, version=""):
    return admin.LoadBundle(
        admin_pb2.LoadBundleRequest(path=str(path), bundle_version=version), timeout=20
    ).bundle


def states(admin):
    answer = admin.DescribeBundles(admin_pb2.DescribeBundlesRequest())
    return [(one.bundle_version, one.active) for one in answer.bundles]


def failure(call, *arguments):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    return caught.value.code().name, caught.value.details()


@contextmanager
def traffic(server, *versions):
    """Unary and stream requests without pause; yields what they answered or failed with."""
    seen, stop = set(), threading.Event()
    texts = shard_pb2.TextBatch(texts=["acme drill"])

    def unary():
        with server.channel() as channel:
            stub = shard_pb2_grpc.ShardServiceStub(channel)
            while not stop.is_set():
                try:
                    answer = stub.Predict(shard_pb2.PredictRequest(texts=texts), timeout=10)
                    seen.add(answer.bundle_version)
                except grpc.RpcError as error:
                    seen.add(error.details())

    thread = threading.Thread(target=unary)
    thread.start()
    try:
        wait_until(lambda: seen, "an answer")
        yield seen
    finally:
        stop.set()
        thread.join()


def test_switch_and_back_under_load(server, admin, root, tiny_bundle):
    first = tiny_bundle.version
    with traffic(server) as seen:
        second = load(admin, root / "second").bundle_version
        assert states(admin) == [(first, True), (second, False)]
        activate = admin_pb2.ActivateBundleRequest(bundle_version=second)
        assert admin.ActivateBundle(activate).previous_version == first
        assert states(admin) == [(second, True), (first, False)]
        wait_until(lambda: second in seen, "an answer by the new bundle")
        with server.channel() as channel:
            stub = shard_pb2_grpc.ShardServiceStub(channel)
            shard = stub.DescribeShard(shard_pb2.DescribeShardRequest())
            assert shard.bundle_version == second
            assert list(shard.bundle_versions) == [second, first]
            for version in (first, second):  # whoever still works with the old one gets it
                request = shard_pb2.PredictRequest(
                    bundle_version=version, texts=shard_pb2.TextBatch(texts=["acme"])
                )
                assert stub.Predict(request).bundle_version == version
        admin.ActivateBundle(admin_pb2.ActivateBundleRequest(bundle_version=first))
        admin.UnloadBundle(admin_pb2.UnloadBundleRequest(bundle_version=second))
    assert seen == {first, second}  # and no error
    assert states(admin) == [(first, True)]


def test_a_bad_bundle_is_refused_and_the_old_one_goes_on(server, admin, root, tiny_bundle):
    with traffic(server) as seen:
        code, message = failure(load, admin, root / "damaged")
        assert code == "FAILED_PRECONDITION"
        assert repetition_file(2) in message
        assert failure(load, admin, "none")[0] == "FAILED_PRECONDITION"
        code, message = failure(load, admin, "small")  # lacks the repetition served here
        assert code == "INVALID_ARGUMENT"
        assert message.startswith("repetition: 2 ")
        assert failure(load, admin, "/")[0] == "INVALID_ARGUMENT"
        assert failure(load, admin, "second", "f" * 64)[0] == "FAILED_PRECONDITION"
        unknown = admin_pb2.ActivateBundleRequest(bundle_version="f" * 64)
        assert failure(admin.ActivateBundle, unknown)[0] == "NOT_FOUND"
        active = admin_pb2.UnloadBundleRequest(bundle_version=tiny_bundle.version)
        assert failure(admin.UnloadBundle, active)[0] == "INVALID_ARGUMENT"
    assert seen == {tiny_bundle.version}
    assert states(admin) == [(tiny_bundle.version, True)]
    assert server.metrics()['mach_bundle_loads_total{outcome="failed"}'] == 4
    assert "Traceback" not in server.stderr


def test_the_port_for_queries_does_not_offer_it(server):
    with server.channel() as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        code, _ = failure(stub.DescribeBundles, admin_pb2.DescribeBundlesRequest())
        assert code == "UNIMPLEMENTED"

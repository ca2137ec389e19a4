"""The same over the S3 protocol, with a server on loopback."""

from __future__ import annotations

import boto3
import fsspec
import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from mach.bundle import MANIFEST_FILE, Bundle
from mach.errors import BundleError, Unavailable
from mach.store import fetch, push


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket; clients are pointed at it as a deployment would do."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    fsspec.filesystem("s3").clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    yield client
    server.stop()
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_bundle_goes_through_s3(tiny_bundle, tmp_path, bucket):
    location = push(tiny_bundle, "s3://models/bundles")
    assert location == f"s3://models/bundles/{tiny_bundle.version}"
    assert push(tiny_bundle, "s3://models/bundles/") == location
    path = fetch(location, tmp_path, version=tiny_bundle.version)
    Bundle.open(path).verify()

    key = f"bundles/{tiny_bundle.version}/catalog.arrow"
    data = bucket.get_object(Bucket="models", Key=key)["Body"].read()
    bucket.put_object(Bucket="models", Key=key, Body=data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"catalog\.arrow differs from the manifest"):
        fetch(location, tmp_path / "other")
    push(tiny_bundle, "s3://models/bundles")
    Bundle.open(fetch(location, tmp_path / "other")).verify()

    bucket.delete_object(Bucket="models", Key=f"bundles/{tiny_bundle.version}/{MANIFEST_FILE}")
    with pytest.raises(BundleError, match=r"there is no manifest\.json at s3://models/bundles/"):
        fetch(location, tmp_path / "third")


def test_a_bucket_that_is_not_there_cannot_be_pushed_to(tiny_bundle, bucket):
    with pytest.raises((Unavailable, BundleError), match="nowhere"):
        push(tiny_bundle, "s3://nowhere/bundles")

"""Publishing and fetching bundles: whole or not at all, verified, from the cache if it can."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mach.bundle import MANIFEST_FILE, Bundle, Manifest, files_for, repetition_file
from mach.errors import BundleError, ConfigError, InvalidInput, Unavailable
from mach.store import fetch, link, open_location, push, transfer


@pytest.fixture(params=["path", "file", "memory"])
def store(request, tmp_path):
    """A place for bundles, as a path or URL."""
    if request.param == "memory":
        yield (url := f"memory://{uuid.uuid4()}")
        fsspec.filesystem("memory").rm(url, recursive=True)
    else:
        path = tmp_path / "a store"
        yield str(path) if request.param == "path" else path.as_uri()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_pushed_is_fetched(tiny_bundle, store, tmp_path):
    location = push(tiny_bundle, store)
    assert location == f"{store}/{tiny_bundle.version}"
    path = fetch(location, tmp_path / "cache")
    assert path == tmp_path / "cache" / tiny_bundle.version
    fetched, original = contents(path), contents(tiny_bundle.path)
    assert {n: b for n, b in fetched.items() if n != MANIFEST_FILE} == {
        n: b for n, b in original.items() if n != MANIFEST_FILE
    }
    assert Bundle.open(path).manifest == tiny_bundle.manifest
    Bundle.open(path).verify()


def test_a_push_of_what_is_there_writes_nothing(tiny_bundle, tmp_path):
    location = Path(push(tiny_bundle, str(tmp_path / "store")))
    before = {path.name: path.stat().st_mtime_ns for path in location.iterdir()}
    assert push(tiny_bundle, str(tmp_path / "store")) == str(location)
    assert {path.name: path.stat().st_mtime_ns for path in location.iterdir()} == before


def test_a_push_that_was_cut_off_is_completed(tiny_bundle, tmp_path):
    location = Path(push(tiny_bundle, str(tmp_path / "store")))
    (location / MANIFEST_FILE).unlink()
    (location / "catalog.arrow").unlink()
    (location / "buckets.bin").write_bytes(b"short")
    push(tiny_bundle, str(tmp_path / "store"))
    Bundle.open(location).verify()


@pytest.mark.parametrize("name", ["repetition-000.onnx", MANIFEST_FILE])
def test_a_push_mends_what_is_corrupt_and_writes_nothing_else(tiny_bundle, store, tmp_path, name):
    target = open_location(store).child(tiny_bundle.version)
    push(tiny_bundle, store)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"#" * (tiny_bundle.path / name).stat().st_size)
    target.put(damaged, name)
    put: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        original = type(target).put
        patch.setattr(
            type(target), "put", lambda self, *file: put.append(file[1]) or original(self, *file)
        )
        push(tiny_bundle, store)
    assert put == [name]
    Bundle.open(fetch(target.name, tmp_path / "cache")).verify()


def test_a_push_leaves_another_version_under_the_name(tiny_bundle, tmp_path):
    there = tmp_path / "store" / tiny_bundle.version
    fields = dict(tiny_bundle.manifest)
    del fields["version"]
    other = Manifest.build(**fields | {"num_classes": 1 + fields["num_classes"]}).to_json()
    there.mkdir(parents=True)
    (there / MANIFEST_FILE).write_text(other)
    with pytest.raises(BundleError, match="under the wrong name"):
        push(tiny_bundle, str(tmp_path / "store"))
    assert contents(there) == {MANIFEST_FILE: other.encode()}


def test_a_corrupt_bundle_is_not_pushed(tiny_bundle, tmp_path):
    copy = shutil.copytree(tiny_bundle.path, tmp_path / "copy")
    damage(copy / "catalog.arrow")
    with pytest.raises(BundleError, match=r"catalog\.arrow differs"):
        push(Bundle.open(copy), str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_push_that_fails_leaves_no_manifest(tiny_bundle, tmp_path, monkeypatch):
    put = MemoryFileSystem.put_file

    def failing(self, source, target, **options):
        if target.endswith("catalog.arrow"):
            raise OSError("the disk is on fire")
        return put(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", failing)
    url = f"memory://{uuid.uuid4()}"
    with pytest.raises(Unavailable, match=r"catalog\.arrow: the disk is on fire"):
        push(tiny_bundle, url)
    with pytest.raises(BundleError, match=r"there is no manifest\.json at memory://"):
        fetch(f"{url}/{tiny_bundle.version}", tmp_path)


def test_another_version_under_the_name_is_refused(tiny_bundle, tmp_path):
    location = Path(push(tiny_bundle, str(tmp_path / "store")))
    wrong = location.rename(tmp_path / "store" / ("0" * 64))
    with pytest.raises(BundleError, match=f"{tiny_bundle.version}, not 0000"):
        fetch(str(wrong), tmp_path / "cache", version="0" * 64)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x" * (3 << 20))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [damage, lengthen, truncate])
@pytest.mark.parametrize("name", ["catalog.arrow", "repetition-001.onnx"])
def test_a_corrupt_file_is_refused_and_leaves_nothing(tiny_bundle, tmp_path, harm, name):
    location = Path(push(tiny_bundle, str(tmp_path / "store")))
    harm(location / name)
    with pytest.raises(BundleError, match=f"{name} differs from the manifest"):
        fetch(str(location), tmp_path / "cache")
    target = tmp_path / "cache" / tiny_bundle.version
    assert not (target / name).exists()
    assert not (target / MANIFEST_FILE).exists()
    assert not list(target.glob(".*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b'{"format": 99}', "bundle format 99"),
        (b" " * (17 << 20), "too long"),
        (b'{"format": 2}', "Field required"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, content, message):
    (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        fetch(str(tmp_path), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_used_without_asking_the_store(tiny_bundle, tmp_path):
    location = push(tiny_bundle, str(tmp_path / "store"))
    path = fetch(location, tmp_path / "cache", version=tiny_bundle.version)
    shutil.rmtree(tmp_path / "store")
    assert fetch(location, tmp_path / "cache", version=tiny_bundle.version) == path
    with pytest.raises(BundleError, match=r"there is no manifest\.json"):
        fetch(location, tmp_path / "cache")


@pytest.mark.parametrize("name", ["catalog.arrow", "manifest.json", "repetition-000.onnx"])
def test_a_damaged_cache_is_mended(tiny_bundle, tmp_path, name):
    location = push(tiny_bundle, str(tmp_path / "store"))
    path = fetch(location, tmp_path / "cache")
    (path / name).write_bytes(b"nonsense")
    assert fetch(location, tmp_path / "cache", version=tiny_bundle.version) == path
    Bundle.open(path).verify()


@pytest.mark.parametrize("version", ["mine", "../mine", "", "A" * 64, "0" * 64 + "\n", "absolute"])
def test_a_version_that_is_none_is_refused_and_costs_no_file(tiny_bundle, tmp_path, version):
    mine = tmp_path / "mine"
    shutil.copytree(tiny_bundle.path, mine)
    before = contents(mine)
    name = str(mine) if version == "absolute" else version
    for cache in (tmp_path, tmp_path / "cache"):
        with pytest.raises(InvalidInput, match="is not 64 hexadecimal digits"):
            fetch(str(tmp_path / "store"), cache, version=name)
    assert contents(mine) == before
    assert not (tmp_path / "cache").exists()


def test_another_versions_manifest_in_the_cache_is_replaced_not_deleted(tiny_bundle, tmp_path):
    location = push(tiny_bundle, str(tmp_path / "store"))
    there = tmp_path / "cache" / ("0" * 64)
    shutil.copytree(tiny_bundle.path, there)
    with pytest.raises(BundleError, match="not 0000"):
        fetch(location, tmp_path / "cache", version="0" * 64)
    Bundle.open(there).verify()

    fields = dict(tiny_bundle.manifest)
    del fields["version"]
    other = Manifest.build(**fields | {"num_classes": 1 + fields["num_classes"]})
    path = fetch(location, tmp_path / "cache")
    (path / MANIFEST_FILE).write_text(other.to_json())
    assert fetch(location, tmp_path / "cache", version=tiny_bundle.version) == path
    Bundle.open(path).verify()


def test_a_shard_fetches_its_own_models_and_another_adds_to_them(tiny_bundle, tmp_path):
    location = push(tiny_bundle, str(tmp_path / "store"))

    def files(repetitions):
        return lambda manifest: files_for(manifest, "shard", repetitions)

    path = fetch(location, tmp_path / "cache", files=files([1]))
    assert set(contents(path)) == {MANIFEST_FILE, "features.arrow", repetition_file(1)}
    assert fetch(location, tmp_path / "cache", files=files([2, 1])) == path
    assert set(contents(path)) == {
        MANIFEST_FILE,
        "features.arrow",
        repetition_file(1),
        repetition_file(2),
    }
    with pytest.raises(InvalidInput, match="repetition: 9 is not in the bundle"):
        fetch(location, tmp_path / "cache", files=files([9]))


def test_an_aggregator_fetches_no_model(tiny_bundle):
    names = files_for(tiny_bundle.manifest, "aggregator")
    assert set(names) == {"buckets.bin", "catalog.arrow", "features.arrow"}
    assert set(files_for(tiny_bundle.manifest, "all")) == set(tiny_bundle.manifest.files)
    assert set(files_for(tiny_bundle.manifest, "shard")) == {
        "features.arrow",
        *(repetition_file(r) for r in range(tiny_bundle.manifest.num_repetitions)),
    }


def test_two_fetches_at_once_agree(tiny_bundle, tmp_path):
    location = push(tiny_bundle, str(tmp_path / "store"))
    results: list[Path | Exception] = []

    def work():
        try:
            results.append(fetch(location, tmp_path / "cache"))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "cache" / tiny_bundle.version] * 6
    Bundle.open(results[0]).verify()
    assert not list(results[0].glob(".*"))


def test_parts_of_dead_processes_are_removed_and_those_of_others_kept(tiny_bundle, tmp_path):
    location = push(tiny_bundle, str(tmp_path / "store"))
    target = tmp_path / "cache" / tiny_bundle.version
    target.mkdir(parents=True)
    old, fresh = target / ".catalog.arrow.a.part", target / ".catalog.arrow.b.part"
    old.write_bytes(b"old")
    fresh.write_bytes(b"fresh")
    os.utime(old, (time.time() - 7200,) * 2)
    fetch(location, tmp_path / "cache")
    assert not old.exists()
    assert fresh.exists()


def test_a_store_that_fails_in_the_middle_is_unavailable(tiny_bundle, tmp_path, monkeypatch):
    location = push(tiny_bundle, f"memory://{uuid.uuid4()}")
    filesystem = fsspec.filesystem("memory")
    opened = type(filesystem).open

    class Broken:
        def read(self, size):
            raise TimeoutError("read timed out")

        def close(self):
            pass

    def breaking(self, path, *arguments, **options):
        if path.endswith("catalog.arrow"):
            return Broken()
        return opened(self, path, *arguments, **options)

    monkeypatch.setattr(type(filesystem), "open", breaking)
    with pytest.raises(Unavailable, match=r"catalog\.arrow: read timed out"):
        fetch(location, tmp_path / "cache")
    monkeypatch.undo()
    path = fetch(location, tmp_path / "cache")  # goes on where the first one stopped
    Bundle.open(path).verify()


def test_a_full_disk_is_not_the_stores_fault(tiny_bundle, tmp_path, monkeypatch):
    location = push(tiny_bundle, f"memory://{uuid.uuid4()}")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mach.store.transfer.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*cache"):
        fetch(location, tmp_path / "cache")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("nosuchscheme://bucket/x", "nosuchscheme"),
        ("file://host/path", "three slashes"),
        ("file://", "three slashes"),
        ("", "is empty"),
        ("adl://x/y", "adlfs|adl"),
    ],
)
def test_a_scheme_that_cannot_be_used_is_named(location, message):
    with pytest.raises(ConfigError, match=message):
        open_location(location)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(ConfigError, match=r"mach-fleet\[store\]"):
        open_location("s3://bucket/x")
    open_location("/a/path")


def test_a_link_is_replaced_and_nothing_else_is(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    at = tmp_path / "run" / "bundle"
    link(first, at)
    assert at.resolve() == first
    link(second, at)
    assert at.resolve() == second
    assert [path.name for path in at.parent.iterdir()] == ["bundle"]
    with pytest.raises(ConfigError, match="is not a link"):
        link(first, second)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, Unavailable("gone")])
def test_what_ends_a_fetch_ends_every_copy(tiny_bundle, tmp_path, monkeypatch, failure):
    """Four files are read in blocks of a byte, slowly, when the fifth fails."""
    location = push(tiny_bundle, str(tmp_path / "store"))
    begun = threading.Semaphore(0)
    read = []

    def slow(source, name, size, stop):
        if name == MANIFEST_FILE:
            return
        if name == "catalog.arrow":
            for _ in range(3):
                begun.acquire()
            raise failure
        begun.release()
        for _ in range(1000):
            if stop.is_set():
                raise transfer._Ended
            time.sleep(0.01)
            read.append(name)
            yield b"x"

    monkeypatch.setattr(transfer, "_blocks", slow)
    started = time.monotonic()
    with pytest.raises(failure if isinstance(failure, type) else type(failure)):
        fetch(location, tmp_path / "cache")
    assert time.monotonic() - started < 5
    assert len(read) < 1000
    assert list(tmp_path.glob("cache/*/.*")) == []


@pytest.fixture
def web():
    """A web server that answers with the status in its path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.split("/")[1]))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "error"), [(404, BundleError), (503, Unavailable)])
def test_a_web_server_that_cannot_answer_is_not_one_without_the_bundle(
    web, tmp_path, status, error
):
    pytest.importorskip("aiohttp")
    with pytest.raises(error, match=r"manifest\.json"):
        fetch(f"http://127.0.0.1:{web}/{status}", tmp_path / "cache")


def test_a_web_server_that_is_not_there(tmp_path):
    pytest.importorskip("aiohttp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(Unavailable, match=r"manifest\.json"):
            fetch(f"http://127.0.0.1:{free.getsockname()[1]}/x", tmp_path / "cache")

"""Loading and switching bundles: only what is whole, one at a time, never out of the root."""

import asyncio
import shutil
import threading
import weakref

import pytest
from prometheus_client import CollectorRegistry

from mach.bundle import FEATURES_FILE, Bundle
from mach.errors import (
    BundleError,
    InvalidInput,
    Unavailable,
    VersionMismatch,
    VersionNotFound,
)
from mach.serving import BundleHost
from tests.bundles import make_bundle


class Held:
    def __init__(self, bundle):
        bundle.verify([FEATURES_FILE])
        self.bundle = bundle


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    for seed, name in enumerate(["a", "b", "c"]):
        make_bundle(root / name, num_classes=20, seed=seed)
    shutil.copytree(root / "c", root / "damaged")
    data = bytearray((root / "damaged" / FEATURES_FILE).read_bytes())
    data[-1] ^= 1
    (root / "damaged" / FEATURES_FILE).write_bytes(data)
    return root


class Host(BundleHost):
    def __init__(self, root, load=Held):
        self.registry = CollectorRegistry()
        self.changes = []
        super().__init__(
            Bundle.open,
            load,
            self.registry,
            root=root,
            on_change=lambda *held: self.changes.append([h and h.bundle.path.name for h in held]),
        )

    def count(self, outcome):
        return self.registry.get_sample_value("mach_bundle_loads_total", {"outcome": outcome})


@pytest.fixture
async def host(root):
    host = Host(root)
    await host.load_first(root / "a")
    return host


def version(root, name):
    return Bundle.open(root / name).version


async def test_nothing_is_answered_before_the_first_is_loaded(root):
    host = Host(root)
    for call in (lambda: host.active, lambda: host.get(""), lambda: host.activate("x")):
        with pytest.raises(Unavailable):
            call()
    with pytest.raises(Unavailable):
        await host.load("a")
    await host.load_first(root / "a")
    assert host.get("") is host.get(version(root, "a")) is host.active


async def test_load_switch_and_back(host, root):
    a, b = version(root, "a"), version(root, "b")
    held_a = host.active
    held_b = await host.load("b", b)
    assert host.active is held_a  # loading switches nothing
    assert host.versions == [a, b]
    assert host.get(b) is held_b
    assert host.activate(b) == a
    assert host.get("") is held_b
    assert host.get(a) is held_a  # for the requests that began with it
    assert host.activate(b) == b
    assert host.activate(a) == b
    assert host.active is held_a
    assert host.changes == [["a", None], ["a", "b"], ["b", "a"], ["a", "b"]]
    assert host.count("ok") == 2


async def test_a_third_takes_the_place_of_the_one_on_standby(host, root):
    await host.load("b")
    await host.load(str(root / "c"))  # absolute, within the root
    assert host.versions == [version(root, "a"), version(root, "c")]
    with pytest.raises(VersionMismatch, match=version(root, "b")):
        host.get(version(root, "b"))
    with pytest.raises(VersionNotFound):
        host.activate(version(root, "b"))


async def test_what_is_loaded_is_not_loaded_again(host):
    first = await host.load("b")
    assert await host.load("b") is first
    assert await host.load("a") is host.active


async def test_unloading(host, root):
    await host.load("b")
    with pytest.raises(InvalidInput, match="active"):
        host.unload(version(root, "a"))
    host.unload(version(root, "b"))
    assert host.versions == [version(root, "a")]
    with pytest.raises(VersionNotFound):
        host.unload(version(root, "b"))


async def test_a_bundle_is_refused_before_the_one_on_standby_has_to_go(host):
    await host.load("b")
    before = host.versions
    with pytest.raises(BundleError, match="no such directory"):
        await host.load("none")
    with pytest.raises(VersionMismatch, match="not " + "f" * 10):
        await host.load("c", "f" * 64)
    assert host.versions == before
    assert host.count("failed") == 2


async def test_a_damaged_bundle_is_refused_and_the_active_one_stays(host, root, caplog):
    await host.load("b")
    with pytest.raises(BundleError, match="corrupt"):
        await host.load("damaged")
    assert host.versions == [version(root, "a")]  # the other had made room
    assert host.count("failed") == 1
    assert "corrupt" in caplog.text


async def test_no_more_than_two_are_ever_in_memory(root):
    alive, most = weakref.WeakSet(), 0

    def load(bundle):
        nonlocal most
        held = Held(bundle)
        alive.add(held)
        most = max(most, len(alive))
        return held

    host = Host(root, load)
    await host.load_first(root / "a")
    for name in ("b", "c", "a"):
        await host.load(name)
        assert len(host.versions) == 2
        host.activate(version(root, name))
    assert most == 2
    host.unload(host.standby.bundle.version)
    await asyncio.sleep(0)
    assert len(alive) == 1


class Gate:
    """A load that ends when the test says so."""

    def __init__(self):
        self.open = threading.Event()
        self.open.set()
        self.running, self.most = 0, 0

    def load(self, bundle):
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.open.wait(10)
        self.running -= 1
        return Held(bundle)

    async def begun(self, call):
        task = asyncio.create_task(call)
        async with asyncio.timeout(5):
            while not self.running:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        return task


async def test_a_caller_that_gives_up_lets_no_other_load_run_beside_its_own(root):
    gate = Gate()
    host = Host(root, gate.load)
    await host.load_first(root / "a")
    gate.open.clear()
    first = await gate.begun(host.load("b"))
    waiting = asyncio.create_task(host.load("a"))
    second = asyncio.create_task(host.load("c"))
    await asyncio.sleep(0.01)
    for task in (first, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.sleep(0.02)
    assert (gate.running, host.count("ok")) == (1, 1)
    gate.open.set()
    await second
    assert gate.most == 1
    assert host.count("ok") == 3  # the one that nobody waited for as well
    assert host.versions == [version(root, "a"), version(root, "c")]


async def test_a_load_given_up_that_fails_is_counted_and_logged(root, caplog):
    gate = Gate()
    host = Host(root, gate.load)
    await host.load_first(root / "a")
    gate.open.clear()
    task = await gate.begun(host.load("damaged"))
    task.cancel()
    gate.open.set()
    await host.load("b")  # when the other is over
    assert host.count("failed") == 1
    assert "corrupt" in caplog.text
    assert host.versions == [version(root, "a"), version(root, "b")]


@pytest.mark.parametrize("path", ["", "..", "../x", "/etc", "a/../../x", "\0", "link"])
async def test_nothing_outside_the_root_is_loaded(host, root, path):
    if path == "link" and not (root / "link").exists():
        (root / "link").symlink_to("/etc")
    with pytest.raises(InvalidInput, match="path"):
        await host.load(path)


async def test_loads_run_one_at_a_time_and_off_the_event_loop(root):
    running, most = 0, 0

    def slow(bundle):
        nonlocal running, most
        running += 1
        most = max(most, running)
        import time

        time.sleep(0.05)
        running -= 1
        return Held(bundle)

    host = Host(root, slow)
    await host.load_first(root / "a")
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await asyncio.gather(host.load("b"), host.load("c"), host.load("b"))
    ticking.cancel()
    assert most == 1
    assert ticks > 5

"""A fleet that serves changes to another bundle and back, by the command a person would use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
import typer
from typer.testing import CliRunner

from mach.cli import bundle as command
from mach.cli import serve
from mach.client import MachClient
from mach.errors import ConfigError, InvalidInput, MachError, UserError
from mach.fleet import LocalFleet
from mach.fleet.switching import (
    AdminPort,
    FleetAdmin,
    read_fleet_file,
    remove_fleet_file,
    write_fleet_file,
)
from tests.bundles import make_bundle
from tests.servers import wait_until


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Two bundles side by side, and a damaged one."""
    root = tmp_path_factory.mktemp("bundles")
    old = make_bundle(root / "old", num_classes=200, seed=1)
    new = make_bundle(root / "new", num_classes=220, seed=2)
    damaged = make_bundle(root / "damaged", num_classes=180, seed=3)
    model = damaged.path / "repetition-003.onnx"
    model.write_bytes(bytes(model.stat().st_size))
    return old, new, damaged


@pytest.fixture(scope="module")
def fleet(bundles):
    with LocalFleet(bundles[0], num_shards=2, admin=True) as running:
        yield running


@pytest.fixture
def mach(fleet, tmp_path):
    """Runs ``mach bundle`` against the fleet; errors come through."""
    app = typer.Typer()
    command.register(app)
    file = tmp_path / "fleet.json"
    write_fleet_file(file, fleet.admin_ports)

    def run(*arguments):
        words = ["bundle", *map(str, arguments), "--fleet-file", str(file)]
        return CliRunner().invoke(app, words, catch_exceptions=False).stdout

    return run


def test_there_and_back_under_load(mach, fleet, bundles):
    old, new, damaged = bundles
    answers, failures, stop = [], [], threading.Event()

    def search_on():
        with MachClient(fleet.address, timeout=10.0) as client:
            while not stop.is_set():
                try:
                    result = client.search("red drill", 3)
                    answers.append((result.bundle_version, result.coverage.answered))
                except MachError as error:
                    failures.append(error)

    def answered_by(bundle):
        return answers and answers[-1][0] == bundle.version

    thread = threading.Thread(target=search_on)
    thread.start()
    try:
        wait_until(lambda: answered_by(old))
        assert f"{old.version} -> {new.version}" in mach("switch", new.path)
        wait_until(lambda: answered_by(new))
        with pytest.raises(UserError, match=r"shard 2-3: .*repetition-003\.onnx"):
            mach("switch", damaged.path)
        assert f"{new.version} -> {old.version}" in mach("switch", old.path)
        wait_until(lambda: answered_by(old))
        assert f"{old.version} -> {new.version}" in mach("switch", new.path)
        wait_until(lambda: answered_by(new))
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert {answered for _, answered in answers} == {4}
    shown = mach("loaded")
    assert shown.count(new.version[:12]) == 3  # every server
    # What dies now comes back with the bundle that the others serve.
    victim = fleet.shards[0]
    os.kill(victim.pid, signal.SIGKILL)
    # More than once where another test took its port meanwhile.
    wait_until(lambda: victim.restarts >= 1 and victim.health() == "serving", seconds=60)
    with MachClient(fleet.address, timeout=5.0) as client:
        wait_until(lambda: client.search("red drill").coverage.complete)
        assert client.search("red drill").bundle_version == new.version


def test_a_server_that_is_away_is_named_and_nothing_changes(fleet, bundles):
    ports = [*fleet.admin_ports, AdminPort("shard lost", "127.0.0.1:1", False)]
    before = FleetAdmin(fleet.admin_ports).loaded()
    with pytest.raises(MachError, match="shard lost: "):
        FleetAdmin(ports, timeout=20.0).switch(str(bundles[0].path))
    active = {name: held[0].version for name, held in before.items()}
    after = FleetAdmin(fleet.admin_ports).loaded()
    assert {name: held[0].version for name, held in after.items()} == active


def test_a_bundle_that_the_aggregator_refuses_is_dropped_everywhere(mach, fleet, bundles):
    larger = make_bundle(bundles[0].path.parent / "larger", num_repetitions=6, seed=4)
    admin = FleetAdmin(fleet.admin_ports)
    before = admin.loaded()
    with pytest.raises(UserError, match=r"aggregator: .*hold 4 of the 6"):
        mach("switch", larger.path)
    after = admin.loaded()
    # What was on standby had to make room for it.
    assert after == {name: held[:1] for name, held in before.items()}
    # Where it was loaded before, it stays.
    admin.load(str(larger.path))
    before = admin.loaded()
    with pytest.raises(UserError, match="hold 4 of the 6"):
        mach("switch", larger.path)
    assert admin.loaded() == before


def test_a_fleet_file_takes_the_place_of_a_dead_fleets_alone(fleet, tmp_path):
    file = tmp_path / "fleet.json"
    dead = [AdminPort("shard 0", "127.0.0.1:1", False)]
    write_fleet_file(file, dead)
    write_fleet_file(file, fleet.admin_ports)
    with pytest.raises(ConfigError, match="still runs: aggregator answers at 127"):
        write_fleet_file(file, dead)
    remove_fleet_file(file, dead)
    assert read_fleet_file(file) == fleet.admin_ports
    remove_fleet_file(file, fleet.admin_ports)
    assert not file.exists()
    remove_fleet_file(file, fleet.admin_ports)


@pytest.mark.parametrize("content", ["", "{}", "[]", "[[]]", '{"mine": 1}', "dear diary", "\xff"])
def test_serve_writes_over_no_other_file(tmp_path, content):
    file = tmp_path / "notes"
    file.write_text(content, encoding="latin-1")
    app = typer.Typer()
    serve.register(app)
    for path in (file, tmp_path):
        with pytest.raises(ConfigError, match=f"{path} is not a file of"):
            CliRunner().invoke(app, ["x", "--fleet-file", str(path)], catch_exceptions=False)
    assert file.read_text(encoding="latin-1") == content


def test_serve_says_before_it_starts_that_no_fleet_file_can_be_written():
    app = typer.Typer()
    serve.register(app)
    with pytest.raises(InvalidInput, match=r"--fleet-file: .*there is no directory /nope"):
        CliRunner().invoke(app, ["x", "--fleet-file", "/nope/x"], catch_exceptions=False)


def test_serve_removes_its_fleet_file_and_no_other(bundles, tmp_path):
    files = [tmp_path / "left.json", tmp_path / "changed.json"]
    for file in files:
        command = ["-m", "mach", "serve", str(bundles[0].path), "--fleet-file", str(file)]
        command += ["--shards", "1", "--listen", "127.0.0.1:0"]
        with subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL) as process:
            try:
                wait_until(file.exists)
                if file == files[1]:
                    file.write_text("mine")
            finally:
                process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    assert not files[0].exists()
    assert files[1].read_text() == "mine"


def test_mistakes_are_named(tmp_path):
    file = tmp_path / "fleet.json"
    with pytest.raises(ConfigError, match="No such file"):
        read_fleet_file(file)
    file.write_text('[{"name": "x"}]')
    with pytest.raises(ConfigError, match="is not a file of"):
        read_fleet_file(file)
    with pytest.raises(ConfigError, match="name the admin ports"):
        FleetAdmin([])
    with pytest.raises(ConfigError, match="front speaks TLS"):
        FleetAdmin([AdminPort("front", "127.0.0.1:1", True, tls=True)])
    app = typer.Typer()
    command.register(app)
    for arguments, message in (
        (["switch", "x"], "give --fleet-file"),
        (["switch", "x", "--shards", "127.0.0.1:1"], "both --aggregators and --shards"),
        (["switch", "x", "--aggregators", "127.0.0.1:1"], "both --aggregators and --shards"),
        (["switch", "x", "--aggregators", "h:1", "--shards", ","], "both --aggregators and"),
        (["loaded", "--shards", "nonsense"], "--shards: 'nonsense' is not HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=message):
            CliRunner().invoke(app, ["bundle", *arguments], catch_exceptions=False)

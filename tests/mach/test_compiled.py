"""Compiled code that comes with an installation."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mach import compiled
from mach.errors import UserError
from tests.bundles import make_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A directory with code for this machine, and a cache to come."""
    directory = tmp_path / "shipped"
    for name in ("merge_1/f-1.py311.nbi", "merge_1/f-1.py311.1.nbc", "features_2/g-2.py311.nbi"):
        file = directory / "cache" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    compiled.finish(directory)
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return directory


def change(shipped, **fields):
    file = shipped / "target.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_the_cache_begins_with_what_is_shipped(shipped, tmp_path):
    assert compiled.adopt(shipped)
    found = {p.relative_to(tmp_path / "cache") for p in (tmp_path / "cache").rglob("*.nb?")}
    assert len(found) == 3
    assert (tmp_path / "cache/merge_1/f-1.py311.nbi").read_text() == "merge_1/f-1.py311.nbi"
    target = json.loads((shipped / "target.json").read_text())
    assert target["machine"] == platform.machine()
    assert os.environ["NUMBA_CPU_NAME"] == target["processor"]
    assert os.environ["NUMBA_CPU_FEATURES"] == ""
    assert compiled.adopt(shipped)  # as the next process does


def test_what_was_compiled_since_stays(shipped, tmp_path):
    newer = tmp_path / "cache/merge_1/f-1.py311.nbi"
    newer.parent.mkdir(parents=True)
    newer.write_text("newer")
    assert compiled.adopt(shipped)
    assert newer.read_text() == "newer"
    assert (shipped / "cache/merge_1/f-1.py311.nbi").read_text() == "merge_1/f-1.py311.nbi"


def test_a_processor_that_lacks_something_compiles_itself(shipped, tmp_path):
    change(shipped, needs=["no-such-flag"])
    assert not compiled.adopt(shipped)
    assert not (tmp_path / "cache").exists()
    assert "NUMBA_CPU_NAME" not in os.environ


def test_another_machine_compiles_itself(shipped):
    change(shipped, machine="another")
    assert not compiled.adopt(shipped)


def test_settings_of_numba_come_first(shipped, monkeypatch):
    monkeypatch.setenv("NUMBA_CPU_NAME", "another")
    assert not compiled.adopt(shipped)
    assert os.environ["NUMBA_CPU_NAME"] == "another"


def test_without_a_cache_to_write_to_nothing_is_adopted(shipped, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    assert not compiled.adopt(shipped)


def test_what_is_damaged_or_not_there_is_left_alone(shipped, tmp_path):
    for content in ("{", "[]", "{}"):
        (shipped / "target.json").write_text(content)
        assert not compiled.adopt(shipped)
    assert not compiled.adopt(tmp_path / "nothing")


def test_a_cache_that_cannot_be_written_is_no_error(shipped, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert not compiled.adopt(shipped)


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A service's user: no home, sources of another's; the directory of temporary files."""
    monkeypatch.setattr(compiled, "__file__", "/proc/mach/compiled.py")
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(
        compiled, "_can_write", lambda path: not str(path).startswith("/proc"), raising=True
    )
    return tmp_path


def test_where_nothing_can_be_written_to_a_directory_of_its_own_is_used(read_only, monkeypatch):
    compiled.find_cache()
    cache = Path(os.environ["NUMBA_CACHE_DIR"])
    assert cache.parent == read_only
    assert cache.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/none")
    compiled.find_cache()  # as the next process does
    assert os.environ["NUMBA_CACHE_DIR"] == str(cache)


def test_a_link_that_another_laid_there_is_not_followed(read_only):
    (read_only / "elsewhere").mkdir()
    (read_only / f"mach-numba-{os.getuid()}").symlink_to(read_only / "elsewhere")
    compiled.find_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == "/proc/none"


def test_a_cache_that_can_be_written_to_stays(read_only, monkeypatch):
    for variable in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(read_only / "mine"))
            before = os.environ["NUMBA_CACHE_DIR"]
            compiled.find_cache()
            assert os.environ["NUMBA_CACHE_DIR"] == before
    assert list(read_only.iterdir()) == []


def test_what_can_be_written_to(tmp_path, monkeypatch):
    assert compiled._can_write(tmp_path / "not" / "yet")
    (tmp_path / "file").touch()
    assert not compiled._can_write(tmp_path / "file")
    monkeypatch.setattr(compiled.os, "access", lambda path, mode: path != tmp_path)
    assert not compiled._can_write(tmp_path / "not" / "yet")


def test_only_a_process_without_numba_can_begin(tmp_path):
    import numba  # noqa: F401

    with pytest.raises(UserError, match="process of its own"):
        compiled.begin(tmp_path / "new", [])


def mach(*arguments, root=ROOT, **environment):
    """The command of an installation in ``root``."""
    return subprocess.run(
        [sys.executable, "-c", "from mach.cli import main; main()", *arguments],
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_directory_that_exists_is_not_touched(tmp_path):
    done = mach("compile", str(tmp_path))
    assert done.returncode == 2
    assert "exists already" in done.stderr.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


USE = """
import sys
from aggregator.merging import warm_up
from aggregator.served import ServedBundle
from mach.merge import BucketTable, TopK
from mach.v1 import shard_pb2
warm_up(ServedBundle.open(sys.argv[1]), shard_pb2.ENCODING_UINT8)
import numpy as np
from mach.hashing import UniversalHash
for buckets, explicit in ((500, False), (66_000, False), (500, True)):
    hashes = UniversalHash.draw(500_000, buckets, 4, 1)
    table = BucketTable.from_hash(hashes, 500_000)
    if explicit:
        table = BucketTable.from_assignment(table.columns(), buckets)
    table.save("table.bin")
    top_k = TopK(BucketTable.open("table.bin"))
    scores = np.random.default_rng(0).normal(size=(4, buckets)).astype(np.float32)
    scores[:, :2] += 10
    print(top_k.search(scores, 10).classes)
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_is_compiled_ahead_is_what_serving_uses(tmp_path):
    """In a copy of the sources, for times of change are set."""
    root = tmp_path / "installed"
    for package in ("mach", "aggregator"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, root / package, ignore=ignored)
    done = mach("compile", str(tmp_path / "compiled"), root=root)
    assert done.returncode == 0, done.stderr
    make_bundle(tmp_path / "bundle")
    cache = tmp_path / "cache"
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "MACH_COMPILED": str(tmp_path / "compiled"),
        "NUMBA_CACHE_DIR": str(cache),
    }
    command = [sys.executable, "-P", "-c", USE, str(tmp_path / "bundle")]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    files = list(cache.rglob("*.nb[ic]"))
    assert len(files) > 50
    assert [f.name for f in files if not f.is_symlink()] == []

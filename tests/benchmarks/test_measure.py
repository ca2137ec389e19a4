"""Time and memory of commands."""

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks.measure import CommandFailed, run_measured

GRANDCHILD = """
import subprocess, sys
part = "import time; x = bytearray(b'x') * 150_000_000; time.sleep(1.5)"
children = [subprocess.Popen([sys.executable, "-c", part]) for _ in range(2)]
[child.wait() for child in children]
"""


def test_memory_is_summed_over_the_tree(tmp_path: Path) -> None:
    cost = run_measured([sys.executable, "-c", GRANDCHILD], log=tmp_path / "log", timeout=60)
    assert 300 < cost.peak_rss_mb < 420
    assert cost.wall_s > 1.4
    assert 0 < cost.cpu_s < cost.wall_s * 2


def test_a_command_that_ends_at_once_has_a_peak(tmp_path: Path) -> None:
    script = "x = bytearray(b'x') * 30_000_000; import time; time.sleep(.04)"
    cost = run_measured([sys.executable, "-c", script], log=tmp_path / "log", timeout=60)
    assert 30 < cost.peak_rss_mb < 60


def test_memory_of_this_process_does_not_count(tmp_path: Path) -> None:
    held = bytearray(b"x") * 200_000_000
    script = "import time; time.sleep(.5)"
    cost = run_measured([sys.executable, "-c", script], log=tmp_path / "log", timeout=60)
    assert len(held) > cost.peak_rss_mb * 1e6


def test_a_failure_says_the_last_line(tmp_path: Path) -> None:
    script = "import sys; print('first'); sys.exit('no such file')"
    with pytest.raises(CommandFailed, match="exit code 1: no such file"):
        run_measured([sys.executable, "-c", script], log=tmp_path / "log", timeout=60)


def test_what_is_not_there_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="cannot be started"):
        run_measured([tmp_path / "nothing"], log=tmp_path / "log", timeout=60)


def test_too_long_kills_all_of_it(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    with pytest.raises(CommandFailed, match="took longer"):
        run_measured([sys.executable, "-c", script], log=tmp_path / "log", timeout=1.5)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the grandchild still runs")

"""Time and memory of a command and everything that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CommandFailed", "Cost", "run_measured"]

_INTERVAL = 0.2
#: While it is young it is looked at each time its age has grown by this share: a command that
#: ends within the interval has a peak, too.
_YOUNG = 0.2
#: Reading the memory of a large process holds up its page faults: no more than this share of time.
_SHARE = 0.02


class CommandFailed(RuntimeError):
    """The command did not end well; the message says how."""


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
        wall_s: from start to end.
        cpu_s: user and system time of the command and of its children that it waited for.
        peak_rss_mb: the largest sum over its processes at one moment, in 10^6 bytes. A page that
            several share counts once (PSS). Read every 0.2 s or more, oftener in the first second;
            a process alone tells its own peak.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mb: float


def _tree(root: int) -> list[int]:
    """``root`` and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            # The second field, the name, may hold spaces and parentheses.
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _resident_bytes(pids: Sequence[int]) -> int:
    """Proportional share of memory of a process tree; of a single process, its peak so far.

    Not ``ru_maxrss``, which starts at what the process that forked had.
    """
    total = 0
    for pid in pids:
        source, name = ("status", "VmHWM") if len(pids) == 1 else ("smaps_rollup", "Pss")
        try:
            lines = Path(f"/proc/{pid}/{source}").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.partition(":")
            if key == name:
                total += int(value.split()[0]) * 1024
    return total


def run_measured(
    command: Sequence[str | Path],
    *,
    log: Path,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Cost:
    """Run ``command``, its output to ``log``, and measure it.

    Raises:
        CommandFailed: if it cannot be started, does not exit with 0, or takes longer than
            ``timeout`` seconds, after which it and what it started are killed.
    """
    start = time.perf_counter()
    peak = 0
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailed(f"{command[0]} cannot be started: {error}") from error
        pid = status = 0
        try:
            while not pid:
                looked = time.perf_counter()
                peak = max(peak, _resident_bytes(_tree(process.pid)))
                interval = max(_INTERVAL, (time.perf_counter() - looked) / _SHARE)
                # wait4 and not Popen.wait: only it has the usage of this child alone.
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                age = time.perf_counter() - start
                if age > timeout:
                    raise CommandFailed(f"took longer than {timeout / 60:.0f} minutes")
                time.sleep(min(interval, 2.0, age * _YOUNG))
        finally:
            if not pid:
                os.killpg(process.pid, signal.SIGKILL)
                os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status) if pid else -signal.SIGKILL
    if process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it printed nothing"
        raise CommandFailed(f"exit code {process.returncode}: {last}")
    return Cost(
        wall_s=time.perf_counter() - start,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_rss_mb=peak / 1e6,
    )

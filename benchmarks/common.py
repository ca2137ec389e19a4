"""What every benchmark says about where it ran."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["describe_machine", "describe_run", "usable_cpus"]


def usable_cpus() -> int:
    """CPUs that this process may use, not those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def describe_machine() -> dict[str, Any]:
    """Processor, memory and interpreter; nothing that names the machine itself."""
    memory_kb = (_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cpus": usable_cpus(),
        "memory_gib": round(int(memory_kb) / 2**20, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str:
    root = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def describe_run() -> dict[str, Any]:
    """When and at which commit; ``+`` marks uncommitted changes to tracked files."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = "+" if commit and _git("status", "--porcelain", "--untracked-files=no") else ""
    now = datetime.datetime.now(datetime.UTC)
    return {"date": now.strftime("%Y-%m-%d"), "commit": commit + changed}

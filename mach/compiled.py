"""Compiled code that comes with an installation, such as an image.

Numba compiles the merge on a machine's first use, which takes a CPU half a minute, and keeps the
result in ``NUMBA_CACHE_DIR``. ``mach compile DIR`` does it ahead, for a processor that most have.
Where ``MACH_COMPILED`` names that directory, the processor is good enough and ``NUMBA_CACHE_DIR``
is named too, that cache is begun with links to what is in the directory.

Numba takes compiled code for valid by the path of a source, its size and its time of change. It
keeps it beside the sources or in the user's cache, and fails where neither can be written to, as
with a service's user: then a directory of this user's own among temporary files is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

__all__ = ["adopt", "begin", "find_cache", "finish"]

_CACHE, _TARGET = "cache", "target.json"
#: By machine: LLVM's name of a processor, and what /proc/cpuinfo says of one that can run its code.
_PROCESSORS = {
    "x86_64": (
        "x86-64-v3",
        ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "popcnt", "sse4_2"),
    )
}
_ANY = ("generic", ())


def _processor() -> tuple[str, tuple[str, ...]]:
    return _PROCESSORS.get(platform.machine(), _ANY)


def _flags() -> set[str]:
    """What this processor can do, in the words of /proc/cpuinfo; nothing where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                return set(value.split())
    return set()


def _missing(needed: Iterable[str]) -> list[str]:
    return sorted(set(needed) - _flags())


def begin(directory: Path, sources: Iterable[Path]) -> None:
    """Have Numba, from when it is imported on, compile into ``directory``, which must not exist.

    The ``sources`` get times of change in whole seconds, which is what layers of images keep.

    Raises:
        UserError: if it exists, Numba is imported already, or this processor cannot run the code.
        OSError: if it cannot be made, or a source's time cannot be set.
    """
    from mach.errors import UserError  # noqa: PLC0415 - every process imports this module

    if "numba" in sys.modules:
        raise UserError("Numba is in use already: compile in a process of its own")
    processor, needed = _processor()
    if missing := _missing(needed):
        raise UserError(
            f"this processor cannot run code for {processor}: it lacks {', '.join(missing)}"
        )
    if directory.exists():
        raise UserError(f"{directory} exists already")
    for source in sources:
        seconds = int(source.stat().st_mtime)
        os.utime(source, (seconds, seconds))
    (directory / _CACHE).mkdir(parents=True)
    os.environ.update(_settings(directory / _CACHE, processor))


def finish(directory: Path) -> int:
    """Say in ``directory`` whom its code is for; without that it is not used. Its size in bytes."""
    processor, needed = _processor()
    target = {"machine": platform.machine(), "processor": processor, "needs": list(needed)}
    (directory / _TARGET).write_text(json.dumps(target))
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def adopt(directory: Path) -> bool:
    """Begin Numba's cache with the code in ``directory``; False where it would not be used.

    For processes that have not imported Numba. Never an error: without this, code is compiled.
    """
    cache = os.environ.get("NUMBA_CACHE_DIR")
    try:
        target = json.loads((directory / _TARGET).read_text())
        settings = _settings(Path(cache or ""), target["processor"])
        if (
            not cache
            or target["machine"] != platform.machine()
            or _missing(target["needs"])
            or any(os.environ.get(name, value) != value for name, value in settings.items())
        ):
            return False
        for source in (directory / _CACHE).rglob("*.nb[ic]"):
            link = Path(cache) / source.relative_to(directory / _CACHE)
            link.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                link.symlink_to(source.resolve())
    except (OSError, ValueError, LookupError, TypeError):
        return False
    os.environ.update(settings)
    return True


def _settings(cache: Path, processor: str) -> dict[str, str]:
    return {
        "NUMBA_CACHE_DIR": str(cache),
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": "",  # beyond what the name stands for
    }


def find_cache() -> None:
    """Give Numba a directory for compiled code where it would find none that it can write to."""
    own = os.environ.get("NUMBA_CACHE_DIR")
    # As Numba does, to which "~" is a name where there is no home.
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    sources = Path(__file__).parent / "merge"
    usual = [Path(own)] if own else []
    if any(map(_can_write, [*usual, sources / "__pycache__", Path(home) / "numba"])):
        return
    directory = Path(tempfile.gettempdir()) / f"mach-numba-{os.getuid()}"
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
        # What lies there is executed: nobody else may have put it there.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            directory.chmod(0o700)
            os.environ["NUMBA_CACHE_DIR"] = str(directory)


def _can_write(directory: Path) -> bool:
    """Whether a directory can be written to, or made."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory.is_dir() and os.access(directory, os.W_OK)

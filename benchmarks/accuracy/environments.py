"""One virtual environment a peer, because their requirements contradict ours and each other."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mach.files import write_atomically

__all__ = ["EnvironmentFailed", "Environments"]

REQUIREMENTS = Path(__file__).parent / "requirements"
#: The newest Python for which every peer has a wheel comes first.
PYTHONS = ("python3.11", "python3.12", "python3.10")


class EnvironmentFailed(RuntimeError):
    """An environment could not be made; the message says why."""


class Environments:
    """Makes and finds environments below a folder."""

    def __init__(self, folder: Path, requirements: Path = REQUIREMENTS) -> None:
        self.folder = folder
        self.requirements = requirements

    def python(self, name: str) -> Path:
        """The interpreter of environment ``name``, made from its requirements if need be.

        Raises:
            EnvironmentFailed: if no Python fits or a requirement cannot be installed.
        """
        requirements = self.requirements / f"{name}.txt"
        digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
        home = self.folder / name
        python = home / "bin" / "python"
        stamp = home / ".installed"
        if python.exists() and stamp.is_file() and stamp.read_text() == digest:
            return python
        reasons = []
        for base in _candidates():
            shutil.rmtree(home, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            # Every file lists all it needs with its version: nothing is left to resolve.
            install = "-m pip install --quiet --disable-pip-version-check --no-deps --only-binary"
            for command in (
                [base, "-m", "venv", str(home)],
                [str(python), *install.split(), ":all:", "-r", str(requirements)],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    last = (done.stderr.strip() or "it says nothing").splitlines()[-1]
                    reasons.append(f"{Path(base).name}: {last}")
                    break
            else:
                write_atomically(stamp, digest)
                return python
        raise EnvironmentFailed(f"cannot install {name}: {'; '.join(reasons)}")

    def run(self, name: str, arguments: Sequence[str]) -> None:
        """Run a script in environment ``name``.

        Raises:
            EnvironmentFailed: if it fails.
        """
        done = subprocess.run(
            [self.python(name), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise EnvironmentFailed(f"{arguments[0]} failed:\n{done.stderr}")


def _candidates() -> list[str]:
    found = []
    for name in PYTHONS:
        path = shutil.which(name)
        if path is None:
            continue
        # A version manager's shim is found although its Python is not switched on.
        works = subprocess.run([path, "--version"], capture_output=True, check=False)
        if works.returncode == 0:
            found.append(path)
    return found or [sys.executable]

"""The README's commands do what it says: they are run, in its order."""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"```(console|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
ADDRESS = "127.0.0.1:50050"


def commands(blocks):
    lines = [line for kind, text in blocks if kind == "console" for line in text.splitlines()]
    return [line for line in lines if line.startswith("mach ")]


def run(command, cwd):
    """A line of the README, as typed at the root of a clone, its bundle under ``cwd``."""
    words = shlex.split(command.replace("/tmp/", f"{cwd}/"))
    done = subprocess.run(
        [sys.executable, "-m", "mach", *words[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.timeout(400)
def test_commands(tmp_path, free_port):
    address = f"127.0.0.1:{free_port}"
    lines = commands(BLOCKS)
    first_serve = next(i for i, line in enumerate(lines) if line.startswith("mach serve"))
    printed = {line.split()[1]: run(line, tmp_path) for line in lines[:first_serve]}
    assert "all match the manifest" in printed["inspect"]
    assert "P@1" in printed["evaluate"]
    assert (tmp_path / "store.json").exists()
    assert "Garden Hose" in " ".join(printed["search"].split())

    bundle = lines[first_serve].split()[2].replace("/tmp/", f"{tmp_path}/")
    serve = subprocess.Popen(
        [sys.executable, "-m", "mach", "serve", bundle, "--listen", address],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = ""
        deadline = time.monotonic() + 60
        while "serving at" not in said:
            assert time.monotonic() < deadline, said
            said += serve.stdout.readline()
        (search,) = lines[first_serve + 1 :]
        found = run(f"{search} --address {address}", tmp_path)
        assert "Garden" in found
        assert "in_stock=True" in found
        (code,) = (text for kind, text in BLOCKS if kind == "python")
        assert ADDRESS in code
        example = subprocess.run(
            [sys.executable, "-c", code.replace(ADDRESS, address).replace("0.2", "5")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert example.returncode == 0, example.stderr
        assert "4 of 4 repetitions" in example.stdout
    finally:
        serve.send_signal(signal.SIGINT)
        said += serve.communicate(timeout=60)[0]
    assert serve.returncode == 0
    assert said.rstrip().endswith("stopped")


@pytest.mark.timeout(300)
def test_quickstart(tmp_path):
    """In small: what `make quickstart` runs."""
    arguments = ["--products", "200", "--clicks", "3000", "--repetitions", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "mach", "quickstart", *arguments, "--keep", str(tmp_path / "kept")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in ("invent a store", "train 2 repetitions", "start the fleet", "done in"):
        assert words in done.stderr
    assert "score" in done.stdout
    assert (tmp_path / "kept" / "bundle" / "manifest.json").exists()


def test_documents_that_are_linked_exist():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"

"""The commands of docs/security.md do what it says: they are run, in its order."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from aggregator.settings import AggregatorSettings
from mach.cli import main
from mach.tokens import read_tokens
from tests.servers import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
BLOCKS = [block.splitlines() for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)]


def run(line, capsys):
    """A line that begins with ``mach``; its output goes where ``>`` says."""
    words, _, target = line.partition(" > ")
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(words)[1:])
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    return printed.out, target


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_commands(tiny_bundle, tmp_path, free_port, monkeypatch, capsys):
    certificates, tokens, fleet = BLOCKS
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MACH_TOKEN", raising=False)
    for line in certificates:
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    for line in tokens:
        run(line, capsys)
    (entry,) = read_tokens(tmp_path / "tokens.json").tokens
    assert (entry.name, entry.rate, entry.scopes) == ("storefront", 200, ("search",))
    create, serve, search = fleet
    out, target = run(create, capsys)
    (tmp_path / target).write_text(out)
    address = f"127.0.0.1:{free_port}"
    words = shlex.split(serve.replace("store.bundle", str(tiny_bundle.path)))
    process = subprocess.Popen(
        [sys.executable, "-m", "mach", *words[1:], "--listen", address, "--shards", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    try:
        said, deadline = "", time.monotonic() + 60
        while "serving at" not in said:
            assert time.monotonic() < deadline and process.poll() is None, said
            said += process.stdout.readline()
        title = tiny_bundle.catalog.table["title"][3].as_py()
        asked = search.replace("garden hose", title) + f" --address {address}"
        assert "P00003" in run(asked, capsys)[0]
        with pytest.raises(SystemExit) as ended:
            main(shlex.split(asked.replace("--token-file token", ""))[1:])
        assert ended.value.code == 2
        assert "no bearer token was sent" in " ".join(capsys.readouterr().err.split())
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_flags_that_are_named_exist():
    flags = {"--" + name.replace("_", "-") for name in AggregatorSettings.model_fields}
    flags |= {"--no-reflection", "--tls", "--tls-ca", "--tls-server-name", "--token-file"}
    flags |= {"--rate", "--burst", "--scope", "--expires-in-days"}
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    named = set(re.findall(r"`(--[a-z-]*[a-z])[` ]", prose))
    assert len(named) > 12
    assert named <= flags

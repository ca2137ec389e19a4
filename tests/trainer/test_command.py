"""The command line: mistakes get one sentence and exit code 2, and kill -9 loses an epoch."""

import os
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mach.bundle import Bundle
from mach.cli.app import main as mach
from mach.errors import ConfigError
from trainer import __main__ as module
from trainer import run, workers
from trainer.settings import TrainSettings
from trainer.workspace import Workspace

SMALL = [
    *("--repetitions", "2", "--buckets", "32", "--hidden", "16", "--epochs", "2"),
    *("--hash-bits", "16", "--workers", "1", "--learning-rate", "0.02"),
]


@pytest.fixture
def command(monkeypatch, capfd):
    """Run ``python -m trainer`` in this process; gives exit code and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            module.main()
        return caught.value.code, capfd.readouterr().err

    return run


def test_it_trains_and_says_so(command, store, tmp_path):
    out = tmp_path / "bundle"
    code, said = command(store.clicks, "--catalog", store.products, "--out", out, *SMALL)
    assert code == 0, said
    lines = said.splitlines()
    assert "2,000 rows" in lines[0]
    assert any(line.startswith("repetition 1: done, epoch 2/2, loss ") for line in lines)
    assert f"version {Bundle.open(out).version[:12]}" in lines[-1]


def test_mach_train_is_the_same_command(store, tmp_path):
    with pytest.raises(SystemExit) as caught:
        mach(["train", str(store.clicks), "--out", str(tmp_path / "bundle"), "--quiet", *SMALL])
    assert caught.value.code == 0
    assert Bundle.open(tmp_path / "bundle").manifest.num_repetitions == 2


def test_parts_and_environment(command, store, tmp_path, monkeypatch):
    for name, value in {
        "REPETITIONS": "2",
        "HIDDEN": "8",
        "EPOCHS": "1",
        "HASH_BITS": "16",
    }.items():
        monkeypatch.setenv(f"MACH_TRAIN_{name}", value)
    job = [store.clicks, "--out", tmp_path / "bundle"]
    assert command(*job, "--prepare")[0] == 0
    assert command(*job, "--repetition", "0")[0] == 0
    code, said = command(*job, "--collect")
    assert (code, "repetition 1 is not finished" in said) == (2, True)
    with monkeypatch.context() as patch:
        patch.setenv("JOB_COMPLETION_INDEX", "1")
        assert command(*job)[0] == 0
    assert command(*job, "--collect")[0] == 0
    settings = Bundle.open(tmp_path / "bundle").manifest.training["settings"]
    assert (settings["hidden"], settings["epochs"]) == (8, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "0"], "hidden: Input should be greater than or equal to 1"),
        (["--merge-exponents", "a,b"], "merge_exponents: 'a,b' is no list such as 0,0.5,1"),
        (["--quantization", "int3"], "quantization: "),
        (["--title-weight", "inf"], "title_weight: Input should be a finite number"),
        (["--title-weight", "1e308"], "title_weight: Input should be less than or equal to 1"),
        (["--checkpoint-seconds", "nan"], "checkpoint_seconds: Input should be a finite number"),
        (["--repetition", "8"], "repetition: 8 is not from 0 to 7"),
        (["--prepare", "--collect"], "--prepare: goes alone"),
        (["--catalog", "nothing.csv"], "nothing.csv: no such file"),
    ],
)
def test_mistakes_get_one_sentence(command, store, tmp_path, arguments, message):
    code, said = command(store.clicks, "--out", tmp_path / "bundle", *arguments)
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["--hidden", "many"], ["--no-such-option"], ["--wait", "nan", "--collect"]]
)
def test_usage_errors(command, tmp_path, arguments):
    code, said = command("log.csv", *arguments)
    assert code == 2
    assert "Traceback" not in said


@pytest.mark.parametrize("part", [[], ["--prepare"], ["--repetition", "0"], ["--collect"]])
def test_a_bad_row_leaves_nothing(command, tmp_path, part):
    log = tmp_path / "log.csv"
    log.write_text("query,product_id\n" + "a b,p\n" * 50_000 + "broken\n")
    code, said = command(log, "--out", tmp_path / "bundle", *part)
    assert code == 2
    assert said.splitlines()[1:] == [f"error: {log}, row 50001: Expected 2 columns, got 1: broken"]
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_bad_row_leaves_what_others_do_in_the_work_directory(command, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("query,product_id\nbroken\n")
    other = Workspace(tmp_path / "bundle").root / ".data-other"
    other.mkdir(parents=True)
    assert command(log, "--out", tmp_path / "bundle", "--prepare")[0] == 2
    assert other.is_dir()


def test_too_little_memory_is_one_sentence(command, store, tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("trainer.run.prepare", full)
    code, said = command(store.clicks, "--out", tmp_path / "bundle")
    assert (code, len(said.splitlines())) == (2, 1)
    assert "error: there is not enough memory: lower hidden" in said


def full_of_pytorch(*_, **__):
    return torch.empty(1 << 58, dtype=torch.uint8)


def full_of_numpy(*_, **__):
    return np.empty(1 << 58, np.uint8)


@pytest.mark.parametrize("full", [full_of_pytorch, full_of_numpy])
@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("trainer.repetition.Classifier", []),
        ("trainer.repetition.Classifier", ["--repetition", "1"]),
        ("trainer.batched.run.ClassifierGroup", ["--engine", "batched", "--group", "2"]),
    ],
)
def test_too_little_memory_to_train_is_one_sentence(
    command, store, tmp_path, monkeypatch, full, model, part
):
    monkeypatch.setattr(model, full)
    code, said = command(store.clicks, "--out", tmp_path / "bundle", *SMALL, *part)
    assert code == 2
    assert said.splitlines()[-1].startswith("error: there is not enough memory: lower hidden")
    assert "Traceback" not in said


def test_too_little_memory_in_a_worker_is_one_sentence(job, silent, monkeypatch, capfd):
    plan = run._prepared(job, silent)
    monkeypatch.setattr("trainer.repetition.Classifier", full_of_pytorch)
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    tasks, said = iter([(0,), None]), []
    workers._work(
        plan,
        SimpleNamespace(get=lambda: next(tasks)),
        SimpleNamespace(put=said.append),
        os.getppid(),
    )
    (error,) = said
    assert isinstance(error, ConfigError)
    assert "there is not enough memory: lower hidden" in str(error)
    assert capfd.readouterr().err == ""


def test_every_setting_is_an_option_with_a_description():
    for name, field in TrainSettings.model_fields.items():
        assert field.description, name
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    for name in TrainSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in done.stdout
        assert f"MACH_TRAIN_{name.upper()}" in done.stdout


# Processes that die ---------------------------------------------------------------------------


def start(arguments, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        return [int(child) for child in file.read().split()]


def test_kill_9_in_mid_epoch_loses_no_finished_epoch(store, tmp_path):
    out = tmp_path / "bundle"
    long = [*SMALL, "--epochs", "1000", "--patience", "0", "--checkpoint-seconds", "0"]
    arguments = [store.clicks, "--out", out, *long, "--repetitions", "1", "--batch-size", "32"]
    process = start(arguments)
    root = Workspace(out).root
    wait_for(lambda: list(root.glob("model-*/*.checkpoint.npz")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not out.exists()
    second = start(arguments)
    said = iter(second.stderr.readline, "")
    assert "the prepared data of an earlier run are used" in next(said)
    first_event = next(line for line in said if line.startswith("repetition 0:"))
    second.send_signal(signal.SIGINT)
    rest = second.communicate(timeout=60)[1]
    assert second.returncode == 130, rest
    assert "Traceback" not in rest
    assert rest.endswith("interrupted; the same command continues\n")
    epoch = int(first_event.split("epoch ")[1].split("/")[0])
    assert epoch > 1, first_event


@pytest.mark.slow
def test_workers_leave_with_a_parent_that_was_killed(store, tmp_path):
    out = tmp_path / "bundle"
    process = start(
        [store.clicks, "--out", out, *SMALL, "--epochs", "1000", "--patience", "0",
         "--workers", "2", "--batch-size", "32", "--checkpoint-seconds", "0"]
    )  # fmt: skip
    wait_for(lambda: list(Workspace(out).root.glob("model-*/*.checkpoint.npz")), process)
    children = children_of(process.pid)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{child}") for child in children):  # noqa: PTH110
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_worker_is_one_sentence(store, tmp_path):
    out = tmp_path / "bundle"
    process = start(
        [store.clicks, "--out", out, *SMALL, "--epochs", "1000", "--patience", "0",
         "--workers", "2", "--batch-size", "32", "--checkpoint-seconds", "0"]
    )  # fmt: skip
    wait_for(lambda: list(Workspace(out).root.glob("model-*/*.checkpoint.npz")), process)
    for child in children_of(process.pid):
        with open(f"/proc/{child}/cmdline") as file:  # noqa: PTH123
            if "spawn_main" in file.read():
                os.kill(child, signal.SIGKILL)
                break
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert "error: a training process was killed by signal 9" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.fixture
def small_files():
    """Limit the size of any file that this process writes: what a full disk does, at a point."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [4_000, 20_000, 45_000, 200_000])
def test_a_disk_that_fills_up(command, store, tmp_path, small_files, limit):
    """In writing the catalog, the examples, an exported model, or a checkpoint."""
    out = tmp_path / "bundle"
    arguments = [store.clicks, "--catalog", store.products, "--out", out, *SMALL, "--hidden", "64"]
    if limit == 200_000:
        arguments += ["--checkpoint-seconds", "0"]
    small_files(limit)
    code, said = command(*arguments)
    small_files(resource.RLIM_INFINITY)
    assert code == 2, said
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    assert "cannot be written: File too large" in last
    assert "Traceback" not in said
    assert not out.exists()
    root = Workspace(out).root
    assert not [path for path in root.rglob(".*") if not path.name.endswith(".lock")]
    assert command(*arguments)[0] == 0
    Bundle.open(out).verify()

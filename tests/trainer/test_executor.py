"""The seam between a run and who trains its repetitions; Ray behind it, faked and real."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mach.bundle import Bundle
from mach.errors import ConfigError, MachError
from trainer import __main__ as module
from trainer import ray_executor, run
from trainer.executor import Executor
from trainer.repetition import train_repetition
from trainer.run import train
from trainer.workspace import Workspace


def test_a_run_leaves_its_repetitions_to_the_executor(job, silent, monkeypatch, tmp_path):
    """All that are left, and nothing else; what it leaves in the work directory is collected."""
    asked = []

    class Recorder(Executor):
        def check(self, settings):
            asked.append(("check", settings.repetitions))

        def train(self, plan, repetitions, on_event):
            asked.append(("train", list(repetitions)))
            for repetition in repetitions:
                train_repetition(plan, repetition, on_event)

    expected = train(replace(job, out=tmp_path / "expected"), silent).version
    run.train_one(job, 0, silent)
    monkeypatch.setattr(run, "_executor", lambda *_: Recorder())
    assert train(job, silent).version == expected
    assert asked == [("check", 2), ("train", [1])]


# A fake Ray ------------------------------------------------------------------------------------


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        self.cause = cause


class FakeRay:
    """Runs a task when it is waited for; tries again as Ray does."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, resources=None, failures=0):
        self.options, self.units, self.most = [], [], 0
        self._tasks = []
        self.shut = self.connected = False
        self._resources = resources or {"CPU": 2.0}
        self._failures = failures

    def is_initialized(self):
        return self.connected

    def init(self, **_):
        self.connected = True

    def shutdown(self):
        self.shut = True

    def cluster_resources(self):
        return self._resources

    def remote(self, **options):
        def decorate(target):
            if isinstance(target, type):
                return SimpleNamespace(remote=lambda: self._actor(target()))
            self.options.append(options)
            return SimpleNamespace(remote=lambda *arguments: self._submit(target, arguments))

        return decorate

    def _submit(self, target, arguments):
        self._tasks.append((target, arguments))
        return len(self._tasks) - 1

    def _actor(self, instance):
        def method(name):
            return SimpleNamespace(
                remote=lambda *a: SimpleNamespace(is_=getattr(instance, name)(*a))
            )

        return SimpleNamespace(post=method("post"), take=method("take"))

    def wait(self, references, timeout):
        self.most = max(self.most, len(references))
        return references[:1], references[1:]

    def get(self, reference, timeout=None):
        if isinstance(reference, SimpleNamespace):  # an actor's answer
            return reference.is_
        target, arguments = self._tasks[reference]
        self.units.append(arguments[1])
        for left in range(self.options[-1]["max_retries"], -1, -1):
            try:
                if self._failures:
                    self._failures -= 1
                    raise OSError("the network")
                return target(*arguments)
            except Exception as error:
                if not left:
                    raise RayTaskError(error) from error


@pytest.fixture
def ray(monkeypatch):
    def install(**options):
        fake = FakeRay(**options)
        monkeypatch.setattr(ray_executor, "_ray", lambda: fake)
        return fake

    return install


def with_ray(job, **changes):
    changes = {"executor": "ray", **changes}
    return replace(job, settings=job.settings.model_copy(update=changes))


def test_each_repetition_is_a_task(job, silent, ray, tmp_path):
    fake = ray()
    expected = train(replace(job, out=tmp_path / "expected"), silent).version
    assert train(with_ray(job, threads=1, workers=None), silent).version == expected
    assert fake.units == [(0,), (1,)]
    assert fake.options[0]["num_cpus"] == 1
    assert fake.options[0]["num_gpus"] == 0
    assert fake.shut
    assert fake.most == 2


def test_no_more_tasks_at_once_than_workers(job, silent, ray):
    fake = ray()
    train(with_ray(job, repetitions=4, epochs=1, workers=2), silent)
    assert fake.most == 2
    assert sorted(fake.units) == [(0,), (1,), (2,), (3,)]


def test_on_gpus_a_task_takes_one_and_a_group(job, silent, ray):
    fake = ray(resources={"CPU": 8.0, "GPU": 2.0})
    train(with_ray(job, repetitions=3, epochs=1, group=2), silent)
    assert fake.units == [(0,), (1, 2)]
    assert fake.options[0]["num_gpus"] == 1


def test_a_task_that_fails_is_run_again(job, silent, ray):
    fake = ray(failures=2)
    train(with_ray(job, repetitions=1), silent)
    assert fake.options[0]["retry_exceptions"]
    Bundle.open(job.out).verify()


def test_a_task_that_always_fails_is_one_sentence(job, silent, ray):
    fake = ray(failures=99)
    with pytest.raises(MachError, match="repetition 0 failed 4 times: OSError"):
        train(with_ray(job), silent)
    assert fake.shut


def test_a_mistake_is_not_tried_again(job, silent, ray, monkeypatch):
    fake, calls = ray(), []

    def refuse(*_):
        calls.append(1)
        raise ConfigError("the disk is full")

    monkeypatch.setattr(ray_executor, "train_unit", refuse)
    with pytest.raises(ConfigError, match="the disk is full"):
        train(with_ray(job, workers=1), silent)
    assert len(calls) == 1
    assert fake.shut


def test_a_repetition_that_was_done_is_not_trained_again(job, silent, ray, monkeypatch):
    """As when a task dies between finishing and saying so."""
    ray()
    original = ray_executor.train_unit
    calls = []

    def dying(*arguments):
        calls.append(arguments[1])
        original(*arguments)
        if len(calls) == 1:
            raise OSError("died")

    monkeypatch.setattr(ray_executor, "train_unit", dying)
    train(with_ray(job), silent)
    assert calls == [(0,), (1,)]


def test_no_cluster_is_one_sentence(job, silent, ray, monkeypatch):
    fake = ray()

    def refuse(**_):
        raise ConnectionError("nobody at 10.0.0.1\nand much more")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(ConfigError, match=r"can be reached or started: nobody at 10\.0\.0\.1$"):
        train(with_ray(job), silent)


def test_a_cluster_somebody_else_connected_to_is_left_connected(job, silent, ray):
    fake = ray()
    fake.connected = True
    train(with_ray(job, repetitions=1, epochs=1), silent)
    assert not fake.shut


def test_ray_not_installed_is_one_sentence(store, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "bundle"
    arguments = [store.clicks, "--out", out, "--executor", "ray"]
    monkeypatch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        module.main()
    said = capfd.readouterr().err
    assert caught.value.code == 2
    assert said == (
        "error: executor: ray was asked for, but Ray is not installed: "
        "pip install 'mach-fleet[ray]'\n"
    )
    assert not list(tmp_path.iterdir())


# A real one ------------------------------------------------------------------------------------


def tasks_of(root):
    """Processes that run a task of a Ray cluster which ``root`` started."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = (int(stat.rpartition(")")[2].split()[1]), title)
    for pid, (_, title) in parents.items():
        above = pid
        while above in parents and above != root:
            above = parents[above][0]
        if above == root and title.startswith(b"ray::train_repetition"):
            yield pid


@pytest.mark.slow
@pytest.mark.timeout(700)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_local_ray_trains_and_outlives_a_task_that_is_killed(store, tmp_path, silent, job):
    few = {"repetitions": 2, "epochs": 40, "workers": None, "quantization": "fp16"}
    expected = replace(with_ray(job, executor="local", **few), out=tmp_path / "expected")
    version = train(expected, silent).version
    settings = with_ray(job, **few).settings
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in settings.model_dump(exclude_defaults=True).items()
        if name != "workers"
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", store.clicks, "--catalog", store.products,
         "--out", job.out, *options],
        env={**os.environ, "RAY_ADDRESS": "local"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    root = Workspace(job.out).root
    deadline = time.monotonic() + 300
    while not list(root.glob("model-*/*.checkpoint.npz")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victims = list(tasks_of(process.pid))
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert any(line.startswith("repetition 1: ") for line in said.splitlines())
    assert Bundle.open(job.out).version == version
    assert not list(tasks_of(process.pid))

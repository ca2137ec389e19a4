"""Workers while they are being started: signals reach them, and a failure is tried again."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from multiprocessing.context import SpawnProcess

import pytest

from mach.serving import workers
from mach.serving.settings import ServingSettings
from mach.serving.workers import run_workers


def pause_until_told(settings: ServingSettings) -> int:
    signal.pause()
    return 1  # unless the signal ends it, as by default


def say_ready(settings: ServingSettings) -> int:
    settings.ready_file.write_text(json.dumps({"listen": settings.listen, "pid": os.getpid()}))
    signal.pause()
    return 1


@pytest.mark.parametrize("during", [0, 1])
def test_a_signal_during_a_start_ends_all(monkeypatch, during):
    started: list[SpawnProcess] = []
    start = SpawnProcess.start

    def start_and_be_told(process):
        start(process)
        started.append(process)
        if len(started) == during + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SpawnProcess, "start", start_and_be_told)
    begun = time.monotonic()
    settings = ServingSettings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0")
    assert run_workers(settings, pause_until_told, 3) == 0
    assert time.monotonic() - begun < settings.drain_seconds
    assert len(started) == during + 1
    assert all(process.exitcode == -signal.SIGTERM for process in started)


def test_one_that_cannot_be_started_anew_is_tried_again(monkeypatch, tmp_path):
    started: list[SpawnProcess] = []
    attempts = []
    start = SpawnProcess.start

    def start_or_fail(process):
        attempts.append(process)
        if len(attempts) == 3:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        start(process)
        started.append(process)
        if len(started) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def kill_when_announced(path, *_, **__):
        os.kill(started[0].pid, signal.SIGKILL)

    monkeypatch.setattr(SpawnProcess, "start", start_or_fail)
    monkeypatch.setattr(workers, "write_ready_file", kill_when_announced)
    settings = ServingSettings(listen="127.0.0.1:0", ready_file=tmp_path / "ready.json")
    run_workers(settings, say_ready, 2)
    assert len(attempts) == 4
    assert not any(process.is_alive() for process in started)

"""A signal that comes just while a worker is being started reaches that one, too."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.context import SpawnProcess

import pytest

from mach.serving.settings import ServingSettings
from mach.serving.workers import run_workers


def pause_until_told(settings: ServingSettings) -> int:
    signal.pause()
    return 1  # unless the signal ends it, as by default


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

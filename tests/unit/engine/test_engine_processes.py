"""The processes of one engine: none is left, regardless of which one was killed before."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from serving.clock import SystemClock
from serving.engine import engine_processes, orphan_reaper
from serving.engine.engine_processes import EngineProcesses
from tests.support.waiting import PATIENCE


@pytest.fixture
def engine():
    made = EngineProcesses(SystemClock())
    yield made
    made.end()


def test_ending_kills_what_was_started_in_between_and_removes_the_folder(engine):
    folder = Path(engine.watch())
    assert engine.watch() == str(folder)
    child = subprocess.Popen(["sleep", "600"])
    engine.started()
    later = subprocess.Popen(["sleep", "601"])
    engine.end()
    engine.end()
    assert child.wait(PATIENCE) == -signal.SIGKILL
    assert later.poll() is None
    assert not folder.exists()
    later.kill()
    later.wait()


def test_ending_does_not_depend_on_a_reaper_that_was_killed(engine, monkeypatch):
    monkeypatch.setattr(engine_processes, "_END_TIMEOUT", 0.1)
    folder = Path(engine.watch())
    (reaper,) = (
        process
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in (process.info["cmdline"] or ())
    )
    child = subprocess.Popen(["sleep", "600"])
    engine.started()
    reaper.kill()
    engine.end()
    assert child.wait(PATIENCE) == -signal.SIGKILL
    assert not folder.exists()


def test_memory_is_this_process_and_the_engines(engine):
    engine.watch()
    alone = EngineProcesses(SystemClock()).resident_bytes()
    child = subprocess.Popen(["sleep", "600"])
    engine.started()
    assert engine.resident_bytes() > alone > 0
    engine.end()
    child.wait(PATIENCE)


def test_a_reaper_that_does_not_start_leaves_nothing(monkeypatch, tmp_path, engine):
    monkeypatch.setattr(orphan_reaper.sys, "executable", str(tmp_path / "no-python"))
    monkeypatch.setattr(engine_processes.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match="orphan reaper"):
        engine.watch()
    assert list(tmp_path.iterdir()) == []

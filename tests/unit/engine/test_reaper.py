"""The reaper: nothing that a rank started survives it, however it dies."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.engine import reaper as reaper_module
from serving.engine.reaper import Reaper

RANK = """
import subprocess, sys, time
from serving.engine.reaper import Reaper
other = subprocess.Popen(["sleep", "600"])
reaper = Reaper()
reaper.wait_watching()
shell = "sleep 601 & echo $!; wait"
child = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, text=True)
grandchild = int(child.stdout.readline())
reaper.started()
late = subprocess.Popen(["sleep", "602"])
print(other.pid, reaper.pid, child.pid, grandchild, late.pid, reaper.folder, flush=True)
sys.stdin.readline()
reaper.close()
reaper.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def rank():
    process = subprocess.Popen(
        [sys.executable, "-c", RANK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    other, reaper, child, grandchild, late, folder = process.stdout.readline().split()
    pids = [int(pid) for pid in (other, reaper, child, grandchild, late)]
    processes = [psutil.Process(pid) for pid in pids]
    yield process, processes, Path(folder)
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.kill()
    process.communicate()


def wait_until_gone(processes):
    """Wait for processes that are not ours; zombies without a reaper count as gone."""
    _, alive = psutil.wait_procs(
        [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE],
        timeout=30,
    )
    return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_what_the_engine_started_dies_with_a_rank_that_is_killed(rank):
    process, (other, reaper, child, grandchild, late), folder = rank
    assert folder.is_dir()
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until_gone([reaper, child, grandchild]) == []
    assert not folder.exists()
    assert other.is_running()
    assert late.is_running()


def test_closing_ends_what_is_left_and_only_that(rank):
    process, (other, reaper, child, grandchild, late), folder = rank
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "closed\n"
    assert wait_until_gone([reaper, child, grandchild]) == []
    assert not folder.exists()
    assert other.is_running()
    assert late.is_running()


def test_ctrl_c_in_the_terminal_does_not_take_the_reaper_away(rank):
    process, (_, reaper, child, _, _), _ = rank
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        reaper.send_signal(number)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "closed\n"
    assert wait_until_gone([child]) == []


def test_one_that_does_not_answer_is_not_waited_for(monkeypatch):
    reaper = Reaper()
    reaper.wait_watching()
    os.kill(reaper.pid, signal.SIGSTOP)
    monkeypatch.setattr(reaper_module, "_PATIENCE", 0.2)
    try:
        with pytest.raises(OSError, match="did not answer"):
            reaper.started()
    finally:
        os.kill(reaper.pid, signal.SIGCONT)
        reaper.close()
    assert not Path(reaper.folder).exists()


def test_one_that_does_not_start_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(reaper_module.sys, "executable", str(tmp_path / "no-python"))
    monkeypatch.setattr(reaper_module.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match="nobody watches"):
        Reaper()
    assert list(tmp_path.iterdir()) == []

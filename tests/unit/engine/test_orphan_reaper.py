"""The orphan reaper: no engine process survives its rank, regardless of how the rank dies."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from serving.engine import orphan_reaper
from serving.engine.orphan_reaper import OrphanReaper
from tests.support.waiting import PATIENCE

RANK = """
import os, subprocess, sys, tempfile
from serving.engine.orphan_reaper import OrphanReaper
other = subprocess.Popen(["sleep", "600"])
folder = tempfile.mkdtemp()
reaper = OrphanReaper(str(os.getpid()), folder)
reaper.wait_watching()
shell = "sleep 601 & echo $!; wait"
child = subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, text=True)
grandchild = int(child.stdout.readline())
reaper.started()
late = subprocess.Popen(["sleep", "602"])
print(other.pid, reaper.pid, child.pid, grandchild, late.pid, folder, flush=True)
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
        start_new_session=True,
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
    """Return those that do not end; zombies of another parent have ended."""
    _, alive = psutil.wait_procs(
        [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE],
        timeout=PATIENCE,
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


def test_an_engine_process_whose_parent_was_killed_before_dies_with_the_rank(rank):
    process, (_, reaper, child, grandchild, _), folder = rank
    child.kill()
    assert grandchild.is_running()
    os.kill(process.pid, signal.SIGKILL)
    assert wait_until_gone([reaper, child, grandchild]) == []
    assert not folder.exists()


def test_a_killed_session_leaves_no_folder_behind(rank):
    process, (_, reaper, child, grandchild, _), folder = rank
    assert os.getsid(reaper.pid) != process.pid
    os.killpg(process.pid, signal.SIGKILL)
    assert wait_until_gone([reaper, child, grandchild]) == []
    assert not folder.exists()


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


def test_a_killed_reaper_does_not_keep_its_owner_from_closing(rank):
    process, (_, reaper, child, _, _), _ = rank
    reaper.kill()
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "closed\n"
    assert child.is_running()


def test_one_that_does_not_answer_is_not_waited_for(monkeypatch, tmp_path):
    folder = tempfile.mkdtemp(dir=tmp_path)
    reaper = OrphanReaper(str(os.getpid()), folder)
    reaper.wait_watching()
    os.kill(reaper.pid, signal.SIGSTOP)
    monkeypatch.setattr(orphan_reaper, "_ANSWER_TIMEOUT", 0.2)
    try:
        with pytest.raises(OSError, match="did not respond"):
            reaper.started()
    finally:
        os.kill(reaper.pid, signal.SIGCONT)
        reaper.close()
    assert not Path(folder).exists()


def test_one_that_does_not_start_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(orphan_reaper.sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(OSError, match="cannot start the orphan reaper"):
        OrphanReaper()

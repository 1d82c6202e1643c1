"""Exactly the recorded processes end."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from serving.engine import processes
from tests.support.waiting import PATIENCE

STUBBORN = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('ready', flush=True)\n"
    "time.sleep(600)"
)
PARENT = (
    "import subprocess, sys\n"
    "child = subprocess.Popen(['sleep', '600'])\n"
    "print(child.pid, flush=True)\n"
    "child.wait()"
)


@contextlib.contextmanager
def started(code: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A Python process that has printed its first line."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().decode().strip()
        finally:
            process.kill()


def test_one_that_ignores_sigterm_is_killed() -> None:
    with started(STUBBORN) as (process, _):
        item = processes.record(process.pid)
        assert item is not None
        assert processes.end([item], grace=0.1) == []
        assert process.wait(PATIENCE) == -signal.SIGKILL


def test_children_go_too() -> None:
    with started(PARENT) as (process, line):
        item = processes.record(process.pid)
        child = psutil.Process(int(line))
        assert item is not None
        assert [found.pid for found in processes.descendants(process.pid)] == [child.pid]
        assert processes.end([item], grace=0.0) == []
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_recycled_id_is_left_alone() -> None:
    with started(STUBBORN) as (process, _):
        item = processes.record(process.pid)
        assert item is not None
        other = replace(item, create_time=item.create_time - 60)
        assert processes.find(item) is not None
        assert processes.find(other) is None
        assert processes.end([other], grace=0.0) == []
        assert process.poll() is None


def test_we_never_end_ourselves() -> None:
    me = processes.record(os.getpid())
    assert me is not None
    assert processes.end([me], grace=0.0) == []


def test_the_dead_have_no_record() -> None:
    with started(STUBBORN) as (process, _):
        item = processes.record(process.pid)
        assert item is not None
        process.kill()
        process.wait()
        assert processes.record(process.pid) is None
        assert processes.descendants(process.pid) == ()
        assert processes.living([item]) == []


def test_spawned_processes_log_and_have_their_own_session(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os; print(os.environ['WORD'], os.getsid(0) == os.getpid())"
    process = processes.spawn([sys.executable, "-c", code], log=log, environment={"WORD": "hey"})
    assert process.wait(PATIENCE) == 0
    assert log.read_text() == "hey True\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_spawned_processes_die_with_us(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom serving.engine import processes\n"
        f"p = processes.spawn(['sleep', '600'], log=Path({str(tmp_path / 'log')!r}))\n"
        "print(p.pid, flush=True)\np.wait()"
    )
    with started(code) as (process, line):
        orphan = psutil.Process(int(line))
        process.send_signal(number)
        process.wait(PATIENCE)
        assert processes.end([], grace=0.0) == []
        with contextlib.suppress(psutil.NoSuchProcess):
            # The kernel sends the signal; the time-out only bounds a failure.
            orphan.wait(PATIENCE)
        assert not orphan.is_running()

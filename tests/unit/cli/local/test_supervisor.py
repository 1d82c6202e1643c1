"""Processes end when they should, and only those."""

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

from serving.cli.local import supervisor

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
        item = supervisor.record(process.pid)
        assert item is not None
        assert supervisor.end([item], grace=0.1) == []
        assert process.wait(5) == -signal.SIGKILL


def test_children_go_too() -> None:
    with started(PARENT) as (process, line):
        item = supervisor.record(process.pid)
        child = psutil.Process(int(line))
        assert item is not None
        assert [found.pid for found in supervisor.descendants(process.pid)] == [child.pid]
        assert supervisor.end([item], grace=0.0) == []
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_recycled_id_is_left_alone() -> None:
    with started(STUBBORN) as (process, _):
        item = supervisor.record(process.pid)
        assert item is not None
        other = replace(item, create_time=item.create_time - 60)
        assert supervisor.find(item) is not None
        assert supervisor.find(other) is None
        assert supervisor.end([other], grace=0.0) == []
        assert process.poll() is None


def test_we_never_end_ourselves() -> None:
    me = supervisor.record(os.getpid())
    assert me is not None
    assert supervisor.end([me], grace=0.0) == []


def test_the_dead_have_no_record() -> None:
    with started(STUBBORN) as (process, _):
        item = supervisor.record(process.pid)
        assert item is not None
        process.kill()
        process.wait()
        assert supervisor.record(process.pid) is None
        assert supervisor.descendants(process.pid) == ()
        assert supervisor.living([item]) == []


def test_spawned_processes_log_and_have_their_own_session(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import os; print(os.environ['WORD'], os.getsid(0) == os.getpid())"
    process = supervisor.spawn([sys.executable, "-c", code], log=log, environment={"WORD": "hey"})
    assert process.wait(30) == 0
    assert log.read_text() == "hey True\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_spawned_processes_die_with_us(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom serving.cli.local import supervisor\n"
        f"p = supervisor.spawn(['sleep', '600'], log=Path({str(tmp_path / 'log')!r}))\n"
        "print(p.pid, flush=True)\np.wait()"
    )
    with started(code) as (process, line):
        orphan = psutil.Process(int(line))
        process.send_signal(number)
        process.wait(30)
        assert supervisor.end([], grace=0.0) == []
        with contextlib.suppress(psutil.NoSuchProcess):
            # The kernel sends the signal itself; waiting is bounded, not needed.
            orphan.wait(30)
        assert not orphan.is_running()

"""The process that cleans up after a killed ``up``."""

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

from serving.cli.local.state import RunState, StateFile
from serving.engine.processes import record
from tests.support.waiting import PATIENCE

UP = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from serving.cli.keeper import start_orphan_reaper\n"
    "keeper = start_orphan_reaper(Path(sys.argv[1]))\n"
    "print(keeper.pid, flush=True)\n"
    "sys.stdin.read()\n"
    "keeper.close()\n"
)


@contextlib.contextmanager
def up(folder: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A process with an orphan reaper, and the reaper."""
    with subprocess.Popen(
        [sys.executable, "-c", UP, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, psutil.Process(int(process.stdout.readline()))
        finally:
            process.kill()


@contextlib.contextmanager
def sleeper() -> Iterator[psutil.Popen]:
    """A process that a run has started."""
    process = psutil.Popen(["sleep", "600"])
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()


def write(folder: Path, owner: int, *pids: int) -> StateFile:
    records = [record(pid) for pid in (owner, *pids)]
    first, *others = (item for item in records if item is not None)
    state = StateFile(folder)
    state.write(
        RunState(
            up=first, processes=tuple(others), rest_url="", grpc_address="", join_address="",
            groups=1, ranks=1, model="m", started_at=0.0, log_folder="", ray_address="",
            ray_token="", ray_folder="", dashboard_url="", ready=True,
        )
    )  # fmt: skip
    return state


def test_what_a_killed_up_has_started_is_ended(tmp_path):
    with sleeper() as left, up(tmp_path) as (process, keeper):
        write(tmp_path, process.pid, left.pid)
        process.kill()
        assert left.wait(PATIENCE) != 0
        keeper.wait(PATIENCE)
    # It stays for status and down, which report it and remove the files.
    assert StateFile(tmp_path).read() is not None


@pytest.mark.parametrize("whose", ["nobody's", "another run's"])
def test_nothing_else_is_touched(tmp_path, whose):
    with sleeper() as other, up(tmp_path) as (process, keeper):
        state = write(tmp_path, process.pid, other.pid)
        if whose == "nobody's":
            state.remove()
        else:
            found = state.read()
            assert found is not None
            state.write(replace(found, up=replace(found.up, pid=os.getpid())))
        process.kill()
        keeper.wait(PATIENCE)
        assert other.is_running()


def test_a_later_process_with_the_same_id_is_not_touched(tmp_path):
    with sleeper() as other, up(tmp_path) as (process, keeper):
        state = write(tmp_path, process.pid, other.pid)
        found = state.read()
        assert found is not None
        (listed,) = found.processes
        earlier = replace(listed, create_time=listed.create_time - 60)
        state.write(replace(found, processes=(earlier,)))
        process.kill()
        keeper.wait(PATIENCE)
        assert other.is_running()


def test_a_run_of_an_earlier_process_with_the_same_id_is_not_touched(tmp_path):
    with sleeper() as other, up(tmp_path) as (process, keeper):
        state = write(tmp_path, process.pid, other.pid)
        found = state.read()
        assert found is not None
        earlier = replace(found.up, create_time=found.up.create_time - 60)
        state.write(replace(found, up=earlier))
        process.kill()
        keeper.wait(PATIENCE)
        assert other.is_running()


def test_a_killed_session_does_not_take_it_along(tmp_path):
    with sleeper() as left, up(tmp_path) as (process, keeper):
        write(tmp_path, process.pid, left.pid)
        os.killpg(process.pid, signal.SIGKILL)
        assert left.wait(PATIENCE) != 0
        keeper.wait(PATIENCE)


def test_an_up_that_ends_in_order_takes_it_along(tmp_path):
    with up(tmp_path) as (process, keeper):
        process.communicate("")
        assert process.returncode == 0
        # Init may not have reaped it yet.
        assert not keeper.is_running() or keeper.status() == psutil.STATUS_ZOMBIE

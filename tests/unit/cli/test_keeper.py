"""The process that cleans up after a killed ``up``."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from serving.cli.local import supervisor
from serving.cli.local.state import RunState, StateFile

UP = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from serving.cli.keeper import Keeper\n"
    "keeper = Keeper(Path(sys.argv[1]))\n"
    "print(keeper._process.pid, flush=True)\n"
    "sys.stdin.read()\n"
    "keeper.close()\n"
)


@contextlib.contextmanager
def up(folder: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A process that has a keeper, and the keeper."""
    with subprocess.Popen(
        [sys.executable, "-c", UP, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, psutil.Process(int(process.stdout.readline()))
        finally:
            process.kill()


@contextlib.contextmanager
def sleeper() -> Iterator[psutil.Popen]:
    """Something that a run has started."""
    process = psutil.Popen(["sleep", "600"])
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()


def write(folder: Path, owner: int, *pids: int) -> StateFile:
    records = [supervisor.record(pid) for pid in (owner, *pids)]
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
        assert left.wait(20) != 0
        keeper.wait(20)
    # For status and down, which say so and clean the files up.
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
        keeper.wait(20)
        assert other.is_running()


def test_an_up_that_ends_in_order_takes_it_along(tmp_path):
    with up(tmp_path) as (process, keeper):
        process.communicate("")
        assert process.returncode == 0
        assert not keeper.is_running()

"""The next ``up`` cleans up after one that was killed together with its orphan reaper."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from serving.cli.local.background import clean_up_after_crash, remove_ray_folder
from serving.cli.local.state import RunState, StateFile
from serving.engine.processes import ProcessRecord, record
from tests.support.waiting import PATIENCE


@pytest.fixture
def left() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the earlier run."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def stale(folder: Path, *processes: ProcessRecord, ray_folder: str = "") -> StateFile:
    """The state file of a run whose ``up`` is gone."""
    state = StateFile(folder)
    state.write(
        RunState(
            up=ProcessRecord(2**22 - 1, 1.0, "moe-serving"), processes=processes, rest_url="",
            grpc_address="", join_address="", groups=1, ranks=1, model="m", started_at=0.0,
            log_folder="", ray_address="", ray_token="", ray_folder=ray_folder,
            dashboard_url="", ready=True,
        )
    )  # fmt: skip
    return state


def recorded(process: subprocess.Popen[bytes]) -> ProcessRecord:
    found = record(process.pid)
    assert found is not None
    return found


def test_its_processes_end_and_its_files_go(tmp_path: Path, left: subprocess.Popen[bytes]) -> None:
    ray = tmp_path / "moe-session"
    ray.mkdir()
    state = stale(tmp_path, recorded(left), ray_folder=str(ray))
    clean_up_after_crash(state)
    assert left.wait(PATIENCE) != 0
    assert state.read() is None
    assert not ray.exists()


def test_a_process_that_reuses_an_id_is_left_alone(
    tmp_path: Path, left: subprocess.Popen[bytes]
) -> None:
    item = recorded(left)
    state = stale(tmp_path, replace(item, create_time=item.create_time - 60))
    clean_up_after_crash(state)
    assert state.read() is None
    assert psutil.Process(left.pid).is_running()
    assert left.poll() is None


def test_without_a_state_file_there_is_nothing_to_do(tmp_path: Path) -> None:
    clean_up_after_crash(StateFile(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["other", "", "moe-not-there"])
def test_only_folders_of_ours_are_removed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    remove_ray_folder(str(tmp_path / name) if name else "")
    assert folder.is_dir()

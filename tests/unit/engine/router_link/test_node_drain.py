"""A file triggers the drain of a machine's ranks."""

import asyncio
import os
import subprocess

import pytest

from serving.cli.main import main
from serving.cli.ops import leave as command
from serving.engine.router_link import node_drain
from serving.engine.router_link.node_drain import LeaveWatch, request_leave, serving_ranks
from tests.support.clock import ManualClock
from tests.support.waiting import eventually


class Rank:
    """A rank whose drain finishes when the test allows it."""

    def __init__(self):
        self.asked = []
        self.go = asyncio.Event()

    async def drain(self, reason, timeout):
        self.asked.append((reason, timeout))
        await self.go.wait()
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(node_drain, "_POLL_SECONDS", 0.01)


@pytest.fixture
def ended():
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


async def test_a_rank_that_is_asked_drains_and_has_left(tmp_path):
    rank, folder = Rank(), tmp_path / "ranks"
    watch = LeaveWatch(rank.drain, ManualClock(0.0), folder)
    watch.start()
    assert serving_ranks(folder) == [os.getpid()]
    request_leave(7.5, folder)
    await eventually(lambda: rank.asked)
    assert rank.asked == [("its node is being removed", 7.5)]
    assert serving_ranks(folder) == [os.getpid()]
    rank.go.set()
    await eventually(lambda: not serving_ranks(folder))
    await watch.stop()
    assert [file.name for file in folder.iterdir()] == ["leave"]


async def test_a_request_from_before_its_start_is_not_about_it(tmp_path):
    rank, folder = Rank(), tmp_path / "ranks"
    folder.mkdir()
    request_leave(5.0, folder)
    later = (folder / "leave").stat().st_mtime + 1
    watch = LeaveWatch(rank.drain, ManualClock(later), folder)
    watch.start()
    looked = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, looked.set)
    await looked.wait()
    assert rank.asked == []
    os.utime(folder / "leave", (later + 1, later + 1))
    await eventually(lambda: rank.asked)
    await watch.stop()


async def test_a_request_that_cannot_be_read_is_none(tmp_path):
    rank, folder = Rank(), tmp_path / "ranks"
    watch = LeaveWatch(rank.drain, ManualClock(0.0), folder)
    watch.start()
    (folder / "leave").write_text("soon")
    assert watch.requested() is None
    await watch.stop()
    assert rank.asked == []


async def test_a_folder_that_is_not_ours_is_not_used(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    link = tmp_path / "link"
    link.symlink_to(mine)
    watch = LeaveWatch(Rank().drain, ManualClock(0.0), link)
    watch.start()
    assert list(mine.iterdir()) == []
    await watch.stop()


def test_a_rank_that_died_does_not_hold_others_up(tmp_path, ended):
    (tmp_path / f"{ended}.rank").touch()
    (tmp_path / f"{os.getpid()}.left").touch()
    assert serving_ranks(tmp_path) == []


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The command's folder, with this process as its only rank."""
    monkeypatch.setattr(node_drain, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "_POLL_SECONDS", 0.01)
    file = tmp_path / f"{os.getpid()}.rank"
    file.touch()
    return tmp_path, file


def test_the_command_waits_for_the_ranks(here, monkeypatch, capsys):
    folder, file = here
    looks = []

    def ranks():
        looks.append(file.exists())
        if len(looks) == 3:
            file.unlink()
        return serving_ranks(folder)

    monkeypatch.setattr(command, "serving_ranks", ranks)
    assert main(["leave", "--timeout", "9"]) == 0
    assert (folder / "leave").read_text() == "9"
    assert capsys.readouterr().out == "ranks to drain: 1\nall ranks have drained\n"


def test_a_rank_that_does_not_leave_in_time_is_told(here, monkeypatch, capsys):
    monkeypatch.setattr(command, "_SLACK", 0.0)
    assert main(["leave", "--timeout", "0.1"]) == 1
    assert "ranks not drained in time: 1" in capsys.readouterr().out


def test_where_no_rank_runs_there_is_nothing_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(node_drain, "FOLDER", tmp_path / "none")
    assert main(["leave"]) == 0
    assert capsys.readouterr().out == "no ranks are running on this machine\n"


async def test_a_rank_that_starts_removes_what_killed_ones_left(tmp_path, ended):
    folder = tmp_path / "ranks"
    folder.mkdir(mode=0o700)
    for name in (f"{ended}.rank", f"{ended}.left", f"{os.getppid()}.rank"):
        (folder / name).touch()
    watch = LeaveWatch(Rank().drain, ManualClock(0.0), folder)
    watch.start()
    await watch.stop()
    assert [file.name for file in folder.iterdir()] == [f"{os.getppid()}.rank"]

"""The parts of the local stack that need no Ray."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serving.cli.local import stack as stack_module
from serving.cli.local.progress import make_progress
from serving.cli.local.restarts import Restarts
from serving.cli.local.stack import Stack, _bounded, last_error
from serving.cli.local.state import StateFile
from serving.clock import SystemClock
from serving.errors import EngineError
from serving.settings import Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("boot\nerror: port taken\nhint:  use --port\n", "port taken", id="error"),
        pytest.param("error: first\nerror: second\nbye\n", "second", id="the last error"),
        pytest.param("boot\nSegmentation fault\n\n", "Segmentation fault", id="last line"),
        pytest.param("", "it said nothing in ", id="silent"),
    ],
)
def test_last_error(tmp_path: Path, text: str, expected: str) -> None:
    log = tmp_path / "router.log"
    log.write_text(text)
    assert last_error(log).startswith(expected)


def test_last_error_of_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert "it said nothing" in last_error(tmp_path / "none")


def test_bounded_calls_end_in_time() -> None:
    forever = threading.Event()
    assert not _bounded(lambda: forever.wait() and None, 0.05)
    forever.set()
    assert _bounded(lambda: None, 5)
    assert not _bounded(lambda: forever.wait(None) and 1 / 0, 5)


def dead() -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", "exit(3)"])
    process.wait()
    return process


def test_a_router_that_dies_is_started_anew_but_not_for_ever(tmp_path, monkeypatch):
    state = StateFile(tmp_path)
    state.log_folder.mkdir(parents=True)
    monkeypatch.setattr(stack_module, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(stack_module, "ask_fleet", lambda *_: None)
    with make_progress() as progress:
        stack = Stack(Settings(), state, progress, SystemClock())
        stack._router = dead()
        stack.mark_ready()
        monkeypatch.setattr(stack, "_start_router", dead)
        notices: list[str] = []
        with pytest.raises(EngineError, match="exit status 3"):
            stack.watch(notices.append)
    assert len(notices) == 3
    assert all(notice.endswith("starting it anew") for notice in notices)


@pytest.mark.parametrize(
    ("times", "allowed"),
    [
        pytest.param([0], [True], id="first"),
        pytest.param([0, 1, 2, 3], [True, True, True, False], id="too many at once"),
        pytest.param([0, 1, 2, 60], [True, True, True, True], id="the first is forgotten"),
        pytest.param([0, 1, 2, 3, 60.5], [True, True, True, False, True], id="refused ones are no"),
    ],
)
def test_restarts(times, allowed):
    restarts = Restarts(3, 60.0)
    assert [restarts.allowed(now) for now in times] == allowed

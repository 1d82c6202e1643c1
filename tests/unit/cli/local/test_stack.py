"""The parts of the local stack that need no Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.cli.local import router_process
from serving.cli.local import stack as stack_module
from serving.cli.local.progress import make_progress
from serving.cli.local.router_process import RouterProcess
from serving.cli.local.stack import Stack
from serving.cli.local.state import StateFile
from serving.clock import SystemClock
from serving.errors import EngineError
from serving.settings import Settings


def dead(*_: object, **__: object) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", "exit(3)"])
    process.wait()
    return process


def started(settings: Settings, config: Path, log: Path) -> RouterProcess:
    router = RouterProcess(settings, config, log)
    router.start()
    return router


def test_a_router_that_dies_is_restarted_but_not_for_ever(tmp_path, monkeypatch):
    state = StateFile(tmp_path)
    state.log_folder.mkdir(parents=True)
    monkeypatch.setattr(stack_module, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(stack_module, "ask_fleet", lambda *_: None)
    monkeypatch.setattr(router_process, "spawn", dead)
    monkeypatch.setattr(stack_module, "RouterProcess", started)
    with make_progress() as progress:
        stack = Stack(Settings(), state, progress, SystemClock())
        stack.mark_ready()
        notices: list[str] = []
        with pytest.raises(EngineError, match="exit status 3"):
            stack.watch(notices.append)
    assert len(notices) == 3
    assert all(notice.endswith("restarting it") for notice in notices)

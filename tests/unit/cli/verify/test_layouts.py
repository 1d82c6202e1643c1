"""Layouts of ``verify`` are started and stopped with ``up`` and ``down``."""

import os
import subprocess
import sys

import pytest

from serving.cli.main import main
from serving.cli.options import settings_from
from serving.cli.verify import layouts


def test_too_little_memory_is_said_before_anything_is_started(monkeypatch, capsys):
    monkeypatch.setattr(layouts, "memory_shortage", lambda needed: needed)
    monkeypatch.setattr(layouts, "shown", lambda *_: pytest.fail("started"))
    assert main(["verify", "--ranks", "4"]) == 2
    assert "4 ranks need about 11.6 GiB" in capsys.readouterr().err


def test_a_layout_is_stopped_whatever_happens(monkeypatch):
    commands: list[list[str]] = []

    def run(command, *_, **__):
        commands.append(command[1:])
        return 1, ["a", "b"]

    monkeypatch.setattr(layouts, "shown", run)
    monkeypatch.setattr(subprocess, "run", run)
    settings = settings_from(sets=["engine.kind=fake"])
    with (
        pytest.raises(layouts.LayoutNotStarted, match="b"),
        layouts.running(2, settings, ["--x"]),
    ):
        pytest.fail("it did not start")
    assert [command[2] for command in commands] == ["up", "down"]
    assert commands[0][:4] == ["-m", "serving", "up", "--detach"]
    assert "--x" in commands[0]


def test_a_start_that_takes_too_long_is_not_started_and_stopped(monkeypatch):
    commands = []

    def run(command, *_, **__):
        commands.append(command[3])
        return None, []

    monkeypatch.setattr(layouts, "shown", run)
    monkeypatch.setattr(subprocess, "run", run)
    settings = settings_from(sets=["engine.kind=fake", "group.start_timeout=5"])
    with (
        pytest.raises(layouts.LayoutNotStarted, match="not ready after 125 s"),
        layouts.running(1, settings, []),
    ):
        pytest.fail("it did not start")
    assert commands == ["up", "down"]


def test_up_is_run_with_this_interpreter(monkeypatch):
    seen = []

    def up(command, environment, _):
        seen.append((command[0], environment["MOE_SERVING_STATE_DIR"]))
        return 0, []

    monkeypatch.setattr(layouts, "shown", up)
    monkeypatch.setattr(subprocess, "run", lambda command, env, **_: up(command, env, _))
    with layouts.running(1, settings_from(sets=["engine.kind=fake"]), []) as url:
        assert url.startswith("http://127.0.0.1:")
    (up, folder), (down, same_folder) = seen
    assert up == down == sys.executable
    assert folder == same_folder


def test_what_a_command_prints_is_shown_and_its_end_kept(capsys):
    program = "import sys\nfor n in range(20): print('line', n)\nsys.exit(3)"
    code, said = layouts.shown([sys.executable, "-c", program], os.environ, 60.0)
    assert code == 3
    assert [*said] == [f"line {n}" for n in range(5, 20)]
    assert "  line 0\n  line 1\n" in capsys.readouterr().out


def test_a_command_that_takes_too_long_is_killed():
    program = "import time; print('here', flush=True); time.sleep(600)"
    code, _ = layouts.shown([sys.executable, "-c", program], os.environ, 0.5)
    assert code is None

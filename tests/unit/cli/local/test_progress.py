"""The output during the start."""

import io

import pytest
from rich.console import Console

from serving.cli.local.progress import LineProgress, LiveProgress, make_progress
from tests.support.clock import SteppingClock


def test_plain_lines_say_each_thing_once() -> None:
    out = io.StringIO()
    with make_progress(out, SteppingClock()) as progress:
        assert isinstance(progress, LineProgress)
        for text in ("starting", "starting", "up"):
            progress.set("router", text, done=text == "up")
        progress.set("ray", "starting")
        progress.drop("ray")
        progress.set("ray", "starting")
    assert out.getvalue().splitlines() == [
        "[  1.0s] router: starting",
        "[  2.0s] router: up",
        "[  3.0s] ray: starting",
        "[  4.0s] ray: starting",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress(Terminal()), LiveProgress)


def test_live_table_shows_the_last_state_of_each_part() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, legacy_windows=False)
    with LiveProgress(console, SteppingClock()) as progress:
        progress.set("router", "starting")
        progress.set("rank 0", "loading")
        progress.set("rank 9", "never")
        progress.drop("rank 9")
        progress.set("router", "up", done=True)
    last = out.getvalue().rpartition("router")[2]
    assert "up" in last
    assert "loading" in last
    assert "never" not in last

"""``up``: its output and exit codes. The stack is a stand-in."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from serving.cli.local import stack, up
from serving.cli.local.state import StateFile
from serving.cli.main import main
from serving.client.credentials import NO_ACCESS
from serving.errors import EngineError, ServingError, SettingsError
from serving.settings import Settings
from tests.rig.two_nodes import where_table


class StandIn:
    """Runs a test's hooks instead of starting anything."""

    hooks: ClassVar[dict[str, Callable[[], None]]] = {}
    """Functions that run in start, watch and stop."""
    left: ClassVar[tuple[int, ...]] = ()
    log: ClassVar[list[str]] = []

    def __init__(self, settings: Settings, *_: object) -> None:
        del settings
        self.urls = stack.Urls("http://127.0.0.1:1", "127.0.0.1:2")
        self.access = NO_ACCESS
        StandIn.log = []

    def start(self, after_ray: Callable[[], None]) -> None:
        after_ray()
        self.hooks.get("start", nothing)()
        self.log.append("started")

    def mark_ready(self) -> None:
        self.log.append("ready")

    def watch(self, notice: Callable[[str], None]) -> None:
        notice("group g: ready")
        self.hooks.get("watch", nothing)()

    def stop(self, hurry: Callable[[], bool]) -> list[int]:
        self.hooks.get("stop", nothing)()
        self.log.append(f"stopped, hurry {hurry()}")
        return list(self.left)

    def clear_ray_files(self, *, keep_logs: bool) -> None:
        self.log.append("logs kept" if keep_logs else "files removed")

    def logs_hint(self) -> str:
        return "logs: /l"


def nothing() -> None:
    pass


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stack, "Stack", StandIn)
    monkeypatch.setattr(StandIn, "hooks", {})
    monkeypatch.setattr(StandIn, "left", ())
    monkeypatch.setattr(up, "ask_sample", lambda *_, **__: None)
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def foreground(folder: Path) -> tuple[up.Foreground, io.StringIO]:
    out = io.StringIO()
    return up.Foreground(Settings(), StateFile(folder), out), out


@pytest.mark.parametrize("stop", [ctrl_c, sigterm])
def test_a_signal_after_ready_is_a_good_end(tmp_path: Path, stop: Callable[[], None]) -> None:
    StandIn.hooks["watch"] = stop
    run, out = foreground(tmp_path)
    assert run.run(sample=True) == 0
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("READY http://127.0.0.1:1/v1 (REST) 127.0.0.1:2 (gRPC)")
    assert lines[1].endswith("group g: ready")
    assert lines[2] == "stopping"
    assert lines[3].startswith("stopped in ")
    assert StandIn.log == ["started", "ready", "stopped, hurry False", "files removed"]


def test_ctrl_c_while_starting_ends_as_interrupted(tmp_path: Path) -> None:
    StandIn.hooks["start"] = ctrl_c
    run, out = foreground(tmp_path)
    assert run.run(sample=True) == 130
    assert "READY" not in out.getvalue()
    assert StandIn.log == ["stopped, hurry False", "files removed"]


def test_a_second_ctrl_c_hurries(tmp_path: Path) -> None:
    StandIn.hooks["watch"] = ctrl_c
    StandIn.hooks["stop"] = ctrl_c
    run, _ = foreground(tmp_path)
    assert run.run(sample=False) == 0
    assert "stopped, hurry True" in StandIn.log


@pytest.mark.parametrize("when", ["start", "watch"])
def test_a_failure_stops_all_and_names_the_logs(tmp_path: Path, when: str) -> None:
    def fail() -> None:
        raise SettingsError("engine.args.x: unknown")

    StandIn.hooks[when] = fail
    run, _ = foreground(tmp_path)
    with pytest.raises(SettingsError, match=r"^engine\.args\.x: unknown; logs: /l$"):
        run.run(sample=False)
    assert StandIn.log[-2:] == ["stopped, hurry False", "logs kept"]


def test_processes_that_cannot_be_ended_are_named(tmp_path: Path) -> None:
    StandIn.hooks["watch"] = ctrl_c
    StandIn.left = (11, 12)
    run, _ = foreground(tmp_path)
    with pytest.raises(ServingError, match="could not stop these processes: 11, 12"):
        run.run(sample=False)


def test_a_sample_that_fails_takes_nothing_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("no answer")

    monkeypatch.setattr(up, "ask_sample", fail)
    StandIn.hooks["watch"] = ctrl_c
    run, out = foreground(tmp_path)
    assert run.run(sample=True) == 0
    assert "the sample question failed: no answer" in out.getvalue()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--set", "group.count=-1"], "group.count"),
        (["--config", "/no/such/file"], "/no/such/file does not exist"),
        (["--port", "7001", "--grpc-port", "7001"], "both are 7001"),
    ],
)
def test_wrong_settings_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", str(tmp_path))
    assert main(["up", *flags]) == 1
    (line,) = (
        line for line in capsys.readouterr().err.splitlines() if not line.startswith("hint:")
    )
    assert line.startswith("error: ")
    assert words in line


def test_budgets_without_a_ledger_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", str(tmp_path))
    keys = tmp_path / "keys.yaml"
    keys.write_text("tenants: {alice: {budgets: {day: {hard: 1}}}}\n")
    assert main(["up", "--set", f"security.keys_file={keys}"]) == 1
    assert "budgets require a ledger: set ledger.directory" in capsys.readouterr().err


def test_where_table_has_a_row_a_rank() -> None:
    rank = {"rank": 0, "node": "10.77.0.2", "pid": 5, "local_expert_ids": [0, 1]}
    other = rank | {"rank": 1, "node": "10.77.0.3", "local_expert_ids": [2, 3]}
    fleet = {"groups": [{"group_id": "g", "total_experts": 4, "ranks": [rank, other]}]}
    rows = [line.split() for line in where_table(fleet).strip().splitlines()]
    assert rows[1] == ["g", "0", "10.77.0.2", "5", "[0-1]", "of", "4"]
    assert rows[2] == ["g", "1", "10.77.0.3", "5", "[2-3]", "of", "4"]

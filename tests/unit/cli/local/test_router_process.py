"""The router of the local stack: its last error, its restarts, and how it is stopped."""

import subprocess
import sys
from pathlib import Path

import pytest

from serving.cli.local import router_process
from serving.cli.local.router_process import Restarts, RouterProcess, last_error
from serving.errors import EngineError
from serving.settings import Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("boot\nerror: port taken\nhint:  use --port\n", "port taken", id="error"),
        pytest.param("error: first\nerror: second\nbye\n", "second", id="the last error"),
        pytest.param("boot\nSegmentation fault\n\n", "Segmentation fault", id="last line"),
        pytest.param("", "no output in ", id="silent"),
    ],
)
def test_last_error(tmp_path: Path, text: str, expected: str) -> None:
    log = tmp_path / "router.log"
    log.write_text(text)
    assert last_error(log).startswith(expected)


def test_last_error_of_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert "no output" in last_error(tmp_path / "none")


@pytest.fixture
def code() -> list[str]:
    """The program that stands in for the router."""
    return ["print('error: no port'); exit(3)"]


@pytest.fixture
def router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: list[str]) -> RouterProcess:
    """A router whose process runs ``code``."""

    def spawn(_: object, *, log: Path, **__: object) -> "subprocess.Popen[bytes]":
        with log.open("ab") as out:
            return subprocess.Popen([sys.executable, "-c", code[0]], stdout=out)

    monkeypatch.setattr(router_process, "spawn", spawn)
    return RouterProcess(Settings(), tmp_path / "settings.yaml", tmp_path / "router.log")


def wait(router: RouterProcess) -> None:
    while not router.ended():
        pass


@pytest.mark.parametrize(
    ("ready", "message"),
    [
        pytest.param(False, "did not start: no port", id="starting"),
        pytest.param(True, r"exited \(exit status 3: no port\)", id="serving"),
    ],
)
def test_a_router_that_has_ended_is_an_error(
    router: RouterProcess, *, ready: bool, message: str
) -> None:
    assert router.pid is None
    router.require_alive(ready=ready)
    router.start()
    wait(router)
    with pytest.raises(EngineError, match=message):
        router.require_alive(ready=ready)


def test_it_is_restarted_three_times_a_minute(router: RouterProcess) -> None:
    assert router.restart(0.0) is None
    router.start()
    for _ in range(3):
        wait(router)
        assert (router.restart(0.0) or "").endswith("restarting it")
    wait(router)
    assert router.restart(0.0) is None
    assert router.restart(61.0) is not None


def test_one_that_does_not_stop_is_killed_in_a_hurry(
    router: RouterProcess, code: list[str]
) -> None:
    code[0] = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    router.stop(lambda: True)
    router.start()
    while not router.log.read_text():
        pass
    assert not router.ended()
    router.stop(lambda: True)
    assert router.ended()


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

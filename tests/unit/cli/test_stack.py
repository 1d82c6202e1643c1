"""The parts of the local stack that need no Ray."""

import threading
from pathlib import Path

import pytest

from serving.cli.stack import _bounded, last_error


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

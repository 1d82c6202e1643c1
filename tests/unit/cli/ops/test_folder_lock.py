"""The lock on a shared directory; test_weights has two processes that fetch into one."""

import errno
import fcntl
from pathlib import Path

import pytest

from serving.cli.ops import folder_lock
from serving.cli.ops.folder_lock import LOCK, locked, why_not_writable
from serving.clock import SystemClock


def no_sleep(seconds: float) -> None:
    pytest.fail("it waited")


def hold(folder: Path, say=lambda _: None):
    return locked(folder, 10, SystemClock(), no_sleep, say, done=lambda: False)


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with hold(folder) as held:
            assert held
            with (folder / LOCK).open("rb") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert len((folder / LOCK).read_text("utf-8").splitlines()) == 1


def test_it_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold(tmp_path):
        raise RuntimeError("the network is gone")
    with hold(tmp_path) as held:
        assert held


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    said: list[str] = []
    with hold(tmp_path, said.append) as held:
        assert held
    assert "(No locks available)" in said[0]


def test_a_read_only_mount_is_told_as_such(tmp_path: Path) -> None:
    text = why_not_writable(tmp_path / "x", OSError(errno.EROFS, "Read-only file system"))
    assert "mounted read-only" in text

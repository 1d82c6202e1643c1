"""Temporary folders are removed with their process, or at the latest when the next one starts."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serving.temporary import remove_stale, temporary_folder
from tests.support.waiting import PATIENCE

HOLDER = """
import sys
from serving.temporary import temporary_folder
with temporary_folder("held-") as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The system's temporary folder, for this process and for those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def holder():
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_it_is_removed_in_the_end(folder):
    with temporary_folder("mine-") as made:
        assert made.parent == folder
        (made / "file").write_text("x")
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_leaves_goes_when_the_next_one_starts(folder, holder):
    left = Path(holder.stdout.readline().strip())
    assert left.parent == folder
    with temporary_folder("held-"):
        assert (left / "file").exists(), "its process lives"
    holder.send_signal(signal.SIGKILL)
    holder.wait(PATIENCE)
    assert left.exists()
    with temporary_folder("other-"):
        assert left.exists(), "another purpose"
    with temporary_folder("held-") as mine:
        assert list(folder.iterdir()) == [mine]


def test_what_was_not_made_here_is_left_alone(folder):
    (folder / "held-without").mkdir()
    (folder / "held-file").write_text("x")
    (folder / "held-young").mkdir()
    (folder / "held-young" / ".owner").touch()
    assert remove_stale("held-") == []
    assert len(list(folder.iterdir())) == 3

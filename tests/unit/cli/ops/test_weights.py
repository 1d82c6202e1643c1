"""Weights are fetched once, resumed, checked, and awaited."""

import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

from serving.cli.ops import folder_lock
from serving.cli.ops.folder_lock import LOCK
from serving.cli.ops.weights import (
    CONFIG_MARK,
    MARK,
    POLL_SECONDS,
    fetch,
    is_complete,
    sha256_of,
    wait,
)
from serving.errors import EngineError
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE

REPOSITORY = "owner/model"


class FakeHub:
    """A repository with two large files and a small one."""

    def __init__(self) -> None:
        self.files = {"a.safetensors": b"a" * 1000, "b/c.safetensors": b"b", "config.json": b"{}"}
        self.downloads = 0
        self.asked = 0
        self.fail_after: int | None = None
        self.spoil: set[str] = set()

    def digests(self, repository: str, revision: str) -> dict[str, str]:
        assert (repository, revision[0]) == (REPOSITORY, "r")
        self.asked += 1
        return {
            name: hashlib.sha256(content).hexdigest()
            for name, content in self.files.items()
            if name.endswith(".safetensors")
        }

    def download(
        self, repository: str, revision: str, folder: Path, leave_out: Sequence[str]
    ) -> None:
        for name, content in self.files.items():
            target = folder / name
            if target.exists() or any(fnmatch(name, pattern) for pattern in leave_out):
                continue
            if self.fail_after is not None and self.downloads >= self.fail_after:
                raise ConnectionError("the network is gone")
            self.downloads += 1
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"spoilt" if name in self.spoil else content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "model"


def test_all_files_come_and_are_marked(folder: Path) -> None:
    hub = FakeHub()
    fetch(hub, REPOSITORY, "r1", folder)
    assert (folder / "b/c.safetensors").read_bytes() == b"b"
    assert is_complete(REPOSITORY, "r1", folder)


def test_what_is_there_is_not_asked_for(folder: Path) -> None:
    hub = FakeHub()
    fetch(hub, REPOSITORY, "r1", folder)
    fetch(hub, REPOSITORY, "r1", folder)
    assert (hub.asked, hub.downloads) == (1, 3)


def test_a_fetch_that_was_cut_off_goes_on(folder: Path) -> None:
    hub = FakeHub()
    hub.fail_after = 1
    with pytest.raises(ConnectionError):
        fetch(hub, REPOSITORY, "r1", folder)
    assert not is_complete(REPOSITORY, "r1", folder)
    hub.fail_after = None
    fetch(hub, REPOSITORY, "r1", folder)
    assert hub.downloads == 3
    assert is_complete(REPOSITORY, "r1", folder)


def test_a_file_that_is_not_as_published_is_deleted_and_fetched_again(folder: Path) -> None:
    hub = FakeHub()
    hub.spoil = {"a.safetensors"}
    with pytest.raises(EngineError, match=r"1 of 2 files .* deleted: a.safetensors"):
        fetch(hub, REPOSITORY, "r1", folder)
    assert not (folder / "a.safetensors").exists()
    assert not is_complete(REPOSITORY, "r1", folder)
    hub.spoil = set()
    fetch(hub, REPOSITORY, "r1", folder)
    assert is_complete(REPOSITORY, "r1", folder)


def test_another_revision_takes_the_mark_away_first(folder: Path) -> None:
    hub = FakeHub()
    fetch(hub, REPOSITORY, "r1", folder)
    hub.files["a.safetensors"] = b"newer"
    hub.fail_after = 0
    (folder / "a.safetensors").unlink()
    with pytest.raises(ConnectionError):
        fetch(hub, REPOSITORY, "r2", folder)
    assert not (folder / MARK).exists()


def test_a_file_that_never_came_is_broken(folder: Path) -> None:
    hub = FakeHub()
    hub.download = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="2 of 2 files"):
        fetch(hub, REPOSITORY, "r1", folder)


def test_waiting_ends_when_the_mark_is_there(folder: Path) -> None:
    clock = ManualClock(0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now == 3 * POLL_SECONDS:
            fetch(FakeHub(), REPOSITORY, "r1", folder)

    wait(REPOSITORY, "r1", folder, 100, clock, sleep)
    assert clock.now == 3 * POLL_SECONDS


def test_waiting_has_an_end(folder: Path) -> None:
    clock = ManualClock(0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    with pytest.raises(EngineError, match=r"owner/model@r1 after 20 s: see the Job or"):
        wait(REPOSITORY, "r1", folder, 20, clock, sleep)
    assert clock.now == 20


def test_digests(tmp_path: Path) -> None:
    file = tmp_path / "x"
    assert sha256_of(file) == ""
    file.write_bytes(b"abc")
    assert sha256_of(file) == hashlib.sha256(b"abc").hexdigest()


class BusyHub(FakeHub):
    """Blocks its download until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.let_go = threading.Event(), threading.Event()

    def download(
        self, repository: str, revision: str, folder: Path, leave_out: Sequence[str]
    ) -> None:
        self.began.set()
        assert self.let_go.wait(PATIENCE)
        super().download(repository, revision, folder, leave_out)


def in_background(hub: FakeHub, folder: Path) -> threading.Thread:
    thread = threading.Thread(target=fetch, args=(hub, REPOSITORY, "r1", folder))
    thread.start()
    return thread


def test_of_two_that_fetch_one_does_and_the_other_waits(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    busy, second, clock = BusyHub(), FakeHub(), ManualClock(0.0)
    first = in_background(busy, folder)
    assert busy.began.wait(PATIENCE)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now >= 70:
            busy.let_go.set()
            first.join(PATIENCE)

    fetch(second, REPOSITORY, "r1", folder, clock=clock, sleep=sleep)
    assert (busy.downloads, second.downloads, second.asked) == (3, 0, 0)
    said = capsys.readouterr().out
    # At once, after 30 s and after 60 s.
    assert said.count(f"waiting for {os.uname().nodename} (process {os.getpid()})") == 3
    assert "GiB so far" in said
    assert "already" in said


def test_the_wait_for_another_that_fetches_has_an_end(folder: Path) -> None:
    busy, clock = BusyHub(), ManualClock(0.0)
    first = in_background(busy, folder)
    assert busy.began.wait(PATIENCE)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    try:
        with pytest.raises(
            EngineError, match=r"is still downloading to .* after 10 s \(--timeout\)"
        ):
            fetch(FakeHub(), REPOSITORY, "r1", folder, timeout=10, clock=clock, sleep=sleep)
        assert clock.now == 10
    finally:
        busy.let_go.set()
        first.join(PATIENCE)
    assert is_complete(REPOSITORY, "r1", folder)


def test_a_holder_that_is_killed_gives_its_work_to_the_next(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from serving.cli.ops import weights\n"
        "class Hub:\n"
        "    def digests(self, *_): return {}\n"
        "    def download(self, *_): print('fetching', flush=True); time.sleep(600)\n"
        "weights.fetch(Hub(), 'owner/model', 'r1', Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "fetching\n"
        hub, waits = FakeHub(), []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            holder.kill()
            holder.wait()

        fetch(hub, REPOSITORY, "r1", folder, sleep=sleep)
    assert waits
    assert hub.downloads == 3
    assert is_complete(REPOSITORY, "r1", folder)


def test_what_the_other_fetched_meanwhile_is_not_fetched_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark is written between the first check and the lock."""
    take = folder_lock.try_lock

    def slow(*arguments: object) -> bool:
        monkeypatch.setattr(folder_lock, "try_lock", take)
        fetch(FakeHub(), REPOSITORY, "r1", folder)
        return take(*arguments)

    monkeypatch.setattr(folder_lock, "try_lock", slow)
    hub = FakeHub()
    fetch(hub, REPOSITORY, "r1", folder)
    assert (hub.asked, hub.downloads) == (0, 0)


def test_configuration_alone_is_not_taken_for_the_whole(folder: Path) -> None:
    hub = FakeHub()
    hub.files["tokenizer.json"] = b"large"
    fetch(hub, REPOSITORY, "r1", folder, without_weights=True)
    found = {file.name for file in folder.iterdir()}
    assert found == {"config.json", "tokenizer.json", CONFIG_MARK, LOCK}
    assert is_complete(REPOSITORY, "r1", folder, without_weights=True)
    assert not is_complete(REPOSITORY, "r1", folder)
    clock = ManualClock(0.0)
    wait(REPOSITORY, "r1", folder, 20, clock, lambda _: None, without_weights=True)
    # A complete fetch into the same directory satisfies both.
    fetch(hub, REPOSITORY, "r1", folder)
    assert is_complete(REPOSITORY, "r1", folder)
    (folder / CONFIG_MARK).unlink()
    assert is_complete(REPOSITORY, "r1", folder, without_weights=True)


def test_another_revisions_configuration_takes_both_marks_away(folder: Path) -> None:
    fetch(FakeHub(), REPOSITORY, "r1", folder)
    fetch(FakeHub(), REPOSITORY, "r2", folder, without_weights=True)
    assert not is_complete(REPOSITORY, "r1", folder)
    assert not is_complete(REPOSITORY, "r2", folder)
    assert is_complete(REPOSITORY, "r2", folder, without_weights=True)


def as_user(uid: int, folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import os, sys; from pathlib import Path; from serving.cli.ops import weights\n"
        "from serving.errors import EngineError\n"
        f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n"
        "try: weights.fetch(None, 'owner/model', 'r1', Path(sys.argv[1]))\n"
        "except EngineError as error: sys.exit(str(error))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("missing", [True, False])
def test_a_folder_of_root_is_refused_with_the_remedy(tmp_path: Path, *, missing: bool) -> None:
    """A directory like a hostPath created by the kubelet (DirectoryOrCreate: root, 755)."""
    # pytest's directories are not accessible to other users.
    for own in (tmp_path, *tmp_path.parents):
        if own == Path(tempfile.gettempdir()):
            break
        own.chmod(0o755)
    host_path = tmp_path / "disk"
    host_path.mkdir(mode=0o755)
    done = as_user(1000, host_path / "model" if missing else host_path)
    assert done.returncode == 1
    assert "is not writable by user 1000:1000" in done.stderr
    assert f"{host_path} is owned by 0:0, mode 755" in done.stderr
    assert "fsGroup does not apply to a hostPath" in done.stderr
    assert "install -d -o 1000 -g 1000" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_folder_below_a_closed_one_is_refused_in_words(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    done = as_user(1000, closed / "disk" / "model")
    assert done.returncode == 1
    assert "is not writable by user 1000:1000" in done.stderr
    assert "Traceback" not in done.stderr

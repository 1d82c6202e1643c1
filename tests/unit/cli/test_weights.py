"""Weights: fetched once, resumed, checked, and waited for."""

import hashlib
from pathlib import Path

import pytest

from serving.cli.weights import MARK, POLL_SECONDS, fetch, is_complete, sha256_of, wait
from serving.errors import EngineError

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

    def download(self, repository: str, revision: str, folder: Path) -> None:
        for name, content in self.files.items():
            target = folder / name
            if target.exists():
                continue
            if self.fail_after is not None and self.downloads >= self.fail_after:
                raise ConnectionError("the network is gone")
            self.downloads += 1
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"spoilt" if name in self.spoil else content)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


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
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now == 3 * POLL_SECONDS:
            fetch(FakeHub(), REPOSITORY, "r1", folder)

    wait(REPOSITORY, "r1", folder, 100, clock, sleep)
    assert clock.now == 3 * POLL_SECONDS


def test_waiting_has_an_end(folder: Path) -> None:
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    with pytest.raises(EngineError, match=r"owner/model@r1 after 20 s: look at the Job"):
        wait(REPOSITORY, "r1", folder, 20, clock, sleep)
    assert clock.now == 20


def test_digests(tmp_path: Path) -> None:
    file = tmp_path / "x"
    assert sha256_of(file) == ""
    file.write_bytes(b"abc")
    assert sha256_of(file) == hashlib.sha256(b"abc").hexdigest()

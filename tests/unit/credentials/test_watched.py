"""Values loaded from files: when they are reloaded, and the effect of an invalid file."""

import asyncio
import os

import pytest

from serving.credentials.watched import Watched, keep_fresh, read_text
from serving.errors import SettingsError
from tests.support.waiting import eventually


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "value"
    path.write_text("1")
    return path


def watched(path) -> Watched[int]:
    def load() -> int:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            raise SettingsError("no number") from None

    return Watched("a number", (str(path), None), load)


def test_an_unchanged_file_is_not_read_again(file):
    value = watched(file)
    assert (value.value, value.version) == (1, 1)
    assert not value.refresh()
    assert value.version == 1


def test_a_changed_file_is_in_force(file):
    value = watched(file)
    file.write_text("22")
    assert value.refresh()
    assert (value.value, value.version) == (22, 2)


@pytest.mark.parametrize("breaking", ["text", "gone"])
def test_a_broken_file_leaves_the_old_value_until_it_is_repaired(file, breaking):
    value = watched(file)
    file.unlink()
    if breaking == "text":
        file.write_text("not a number")
    assert not value.refresh()
    assert (value.value, value.version) == (1, 1)
    file.write_text("333")
    assert value.refresh()
    assert value.value == 333


def test_a_loader_that_fails_unexpectedly_leaves_the_old_value(file):
    """An exception must not end the polling of other files."""

    def load():
        return {"1": 1, "2": 2}[file.read_text()]

    value = Watched("a number", (str(file),), load)
    file.write_text("three")
    assert not value.refresh()
    assert value.value == 1
    file.write_text("2")
    assert value.refresh()


def test_a_broken_file_is_reported_once(file, monkeypatch):
    said = []
    monkeypatch.setattr("serving.credentials.watched.log.error", lambda *a, **k: said.append(k))
    value = watched(file)
    file.write_text("broken")
    value.refresh()
    value.refresh()
    assert [line["what"] for line in said] == ["a number"]


def test_a_swapped_link_is_a_change(tmp_path):
    # As Kubernetes updates a mounted secret: the path stays, its link leads to another file.
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    for name in ("a", "b"):
        os.utime(tmp_path / name, (1, 1))
    link = tmp_path / "link"
    link.symlink_to("a")
    value = watched(link)
    (tmp_path / "new").symlink_to("b")
    (tmp_path / "new").replace(link)
    assert value.refresh()
    assert value.value == 2


def test_a_first_load_that_fails_is_an_error(tmp_path):
    with pytest.raises(SettingsError, match="no number"):
        watched(tmp_path / "none")


async def test_keep_fresh_looks_again_and_again(file):
    value = watched(file)
    task = asyncio.create_task(keep_fresh([value], 0.001))
    for number in (22, 333):
        file.write_text(str(number))
        await eventually(lambda number=number: value.value == number)
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize(
    "content", [pytest.param(None, id="missing"), pytest.param(b"\xff\xfe", id="binary")]
)
def test_text_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=str(path)):
        read_text(str(path), "something")

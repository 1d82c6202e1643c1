"""The spool after crashes, on a full disk, at its maximum size, and with several threads."""

import errno
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import SettingsError
from serving.ledger import spool as module
from serving.ledger.spool import Spool


def spool(folder, *, max_bytes=2**20, now=0.0):
    return Spool(folder, max_bytes, now)


def lines(segments):
    return [line for segment in segments for line in segment.lines()]


def test_records_are_readable_as_soon_as_they_are_appended(tmp_path):
    """The records that the next process would read if this one were killed."""
    written = spool(tmp_path)
    written.append(b"one\n", 1.0)
    written.append(b"two\n", 2.0)
    (file,) = tmp_path.glob("*.jsonl")
    assert file.read_bytes() == b"one\ntwo\n"


def test_a_sealed_segment_gets_no_more_records(tmp_path):
    written = spool(tmp_path)
    written.append(b"one\n", 1.0)
    (first,) = written.seal()
    written.append(b"two\n", 2.0)
    assert lines([first]) == [b"one"]
    assert lines(written.seal()) == [b"one", b"two"]
    assert written.size == 8
    assert written.oldest_since == 1.0
    written.remove(first)
    assert written.size == 4
    assert written.oldest_since == 2.0
    assert lines(written.seal()) == [b"two"]


def test_sealing_without_records_makes_no_file(tmp_path):
    written = spool(tmp_path)
    assert written.seal() == []
    assert written.oldest_since is None
    assert not list(tmp_path.glob("*.jsonl"))


def test_the_next_process_finds_the_records_and_appends_after_them(tmp_path):
    before = spool(tmp_path)
    before.append(b"one\n", 1.0)
    before.seal()
    before.append(b"two\n", 1.0)
    before.close()
    after = spool(tmp_path, now=5.0)
    after.append(b"three\n", 6.0)
    assert lines(after.seal()) == [b"one", b"two", b"three"]
    assert after.oldest_since == 5.0


def test_other_files_in_the_folder_are_not_touched(tmp_path):
    others = [tmp_path / name for name in ("copy.jsonl", "00000001 (1).jsonl", "copy.bad")]
    for file in others:
        file.write_text("anything")
    written = spool(tmp_path)
    written.append(b"one\n", 1.0)
    assert lines(written.seal()) == [b"one"]
    assert {file.read_text() for file in others} == {"anything"}


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path):
    (tmp_path / "00000007.jsonl").write_bytes(b'whole\n{"record_id": "x", "fini')
    after = spool(tmp_path)
    after.append(b"next\n", 1.0)
    assert lines(after.seal()) == [b"whole", b"next"]


def test_a_second_process_is_refused(tmp_path):
    first = spool(tmp_path)
    with pytest.raises(SettingsError, match="another router uses"):
        spool(tmp_path)
    first.close()
    spool(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_a_setting_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"ledger\.directory: cannot write"):
        spool(tmp_path / "file" / "spool")


def test_the_bound_holds_over_all_segments(tmp_path):
    written = spool(tmp_path, max_bytes=10)
    written.append(b"12345\n", 1.0)
    written.seal()
    with pytest.raises(OSError, match="max_spool_bytes"):
        written.append(b"12345\n", 1.0)
    written.append(b"123\n", 1.0)
    written.remove(written.seal()[0])
    written.append(b"12345\n", 1.0)
    assert lines(written.seal()) == [b"123", b"12345"]


@pytest.mark.parametrize("written_bytes", [0, 3])
def test_a_full_disk_spoils_no_record(tmp_path, monkeypatch, written_bytes):
    """A write that fails, or is incomplete, leaves nothing of its record."""
    real = os.write

    def full(descriptor, data):
        if not written_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:written_bytes])

    written = spool(tmp_path)
    written.append(b"before\n", 1.0)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"No space|only 3 of 7"):
        written.append(b"during\n", 2.0)
    monkeypatch.setattr(os, "write", real)
    written.append(b"after\n", 3.0)
    assert lines(written.seal()) == [b"before", b"after"]


def test_a_segment_is_closed_before_it_is_too_large_to_be_read(tmp_path, monkeypatch):
    """The database may be unavailable for days."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 10)
    written = spool(tmp_path)
    for number in range(7):
        written.append(b"%04d\n" % number, 1.0)
    segments = written.seal()
    assert [segment.size for segment in segments] == [10, 10, 10, 5]
    assert lines(segments) == [b"%04d" % number for number in range(7)]


def test_a_segment_of_bad_lines_is_never_overwritten(tmp_path):
    (tmp_path / "00000004.bad").write_bytes(b"kept\n")
    written = spool(tmp_path)
    written.append(b"one\n", 1.0)
    (segment,) = written.seal()
    written.keep_bad(segment, [b"one"])
    assert (tmp_path / "00000004.bad").read_bytes() == b"kept\n"
    assert (tmp_path / "00000005.bad").read_bytes() == b"one\n"


def test_appends_and_seals_in_two_threads_lose_nothing(tmp_path):
    written, found, done = spool(tmp_path), [], threading.Event()

    def take():
        while True:
            last = done.is_set()
            for segment in written.seal():
                found.extend(segment.lines())
                written.remove(segment)
            if last:
                return

    taker = threading.Thread(target=take)
    taker.start()
    expected = [b"%d" % number for number in range(3000)]
    for line in expected:
        written.append(line + b"\n", 1.0)
    done.set()
    taker.join()
    assert found == expected


@given(st.lists(st.one_of(st.just("seal"), st.just("take"), st.just("restart"), st.integers(1, 9))))
def test_any_history_keeps_every_record_once_and_in_order(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("spool")
    written, appended, taken = spool(folder), [], []
    for number, step in enumerate(steps):
        match step:
            case "seal":
                written.seal()
            case "take":
                for segment in written.seal()[:1]:
                    taken += segment.lines()
                    written.remove(segment)
            case "restart":
                written.close()
                written = spool(folder)
            case length:
                line = b"%d" % number * length
                written.append(line + b"\n", 0.0)
                appended.append(line)
        assert written.size == sum(file.stat().st_size for file in folder.glob("*.jsonl"))
    assert taken + lines(written.seal()) == appended
    written.close()

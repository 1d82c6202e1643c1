"""Files, batches, lines, validation and results in a SQLite database and a folder."""

import asyncio
import contextlib
import errno
import json
import threading
import tracemalloc

import pytest
from sqlalchemy import update

from serving.batch import objects
from serving.batch.records import Answer, Status
from serving.batch.result_lines import content_of
from serving.batch.schema import BATCHES
from serving.errors import (
    Conflict,
    NotReady,
    Overloaded,
    ResourceNotFound,
    SettingsError,
    StorageFull,
)
from tests.support.batches import line, new, open_store, put, results, running
from tests.support.clock import ManualClock
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture
def clock():
    return ManualClock(1_000_000.0)


@pytest.fixture
def store(tmp_path, clock):
    return open_store(tmp_path, clock)


def lines_of(count):
    return b"\n".join(line(f"id-{number}") for number in range(count))


def answer(store, batch, *numbers, completed=True, text="x"):
    return store.lines.answer(
        batch.batch_id,
        [
            Answer(batch.batch_id, number, completed, content_of(f"id-{number - 1}", response=text))
            for number in numbers
        ],
    )


def finish(store, batch, outcome=Status.COMPLETED):
    store.batches.close(batch.batch_id, outcome)
    closed = store.batches.get(batch.tenant, batch.batch_id)
    assert store.batches.own(closed.batch_id, closed.status)
    assert store.write_results(closed)
    return store.batches.get(batch.tenant, batch.batch_id)


# -- files ------------------------------------------------------------------------------


def test_a_file_is_visible_once_it_is_complete(store):
    upload = store.files.begin("t")
    upload.write(b"abc")
    assert store.files.page("t", after=None, limit=9, descending=True, purpose=None) == ([], False)
    file = store.files.finish(upload, "a.jsonl")
    assert (file.bytes, file.filename, file.purpose) == (3, "a.jsonl", "batch")
    assert store.files.get("t", file.file_id) == file
    assert store.files.read(file.file_id, 1, 1) == b"b"


def test_pages_follow_the_order_of_creation(store, clock):
    made = []
    for _ in range(5):
        clock.now += 1
        made.append(put(store, b"x"))
    found, after = [], None
    for _ in range(3):
        page, more = store.files.page("t", after=after, limit=2, descending=False, purpose="batch")
        found += page
        after = page[-1].file_id
    assert (found, more) == (made, False)
    newest, more = store.files.page("t", after=None, limit=4, descending=True, purpose=None)
    assert (newest, more) == (made[:0:-1], True)
    assert store.files.page("t", after=None, limit=9, descending=True, purpose="x") == ([], False)


@pytest.mark.asyncio
async def test_an_upload_that_is_cancelled_while_it_begins_leaves_nothing(store, monkeypatch):
    begin, begun, go_on = store.files.begin, threading.Event(), threading.Event()

    def slow(*args, **fields):
        upload = begin(*args, **fields)
        begun.set()
        assert go_on.wait(PATIENCE)
        return upload

    monkeypatch.setattr(store.files, "begin", slow)
    uploading = asyncio.create_task(store.begin_upload("t", expected=7))
    await eventually(begun.is_set, "the beginning")
    assert store.files.sizes() != (0, 0)
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    go_on.set()
    await eventually(lambda: store.files.sizes() == (0, 0), "the end of the upload")
    await store.close()


def test_an_aborted_upload_leaves_nothing(store, tmp_path):
    upload = store.files.begin("t")
    upload.write(b"abc")
    store.files.abort(upload)
    assert list((tmp_path / "files").iterdir()) == []
    assert store.files.sizes() == (0, 0)


def test_limits_of_a_tenant(tmp_path, clock):
    store = open_store(tmp_path, clock, tenant_files=2, tenant_bytes=1024)
    put(store, b"x" * 1000)
    with pytest.raises(StorageFull, match="tenant_bytes"):
        store.files.begin("t", expected=25)
    with pytest.raises(StorageFull, match="tenant_bytes"):
        put(store, b"x" * 25)
    put(store, b"x" * 24)
    with pytest.raises(Overloaded, match="tenant_files"):
        store.files.begin("t")
    put(store, b"x" * 1000, "another")
    assert store.files.sizes() == (3, 2024)


def test_a_full_disk_is_a_typed_error_and_leaves_nothing(store, tmp_path, monkeypatch):
    upload = store.files.begin("t")

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(objects.os, "fsync", full)
    upload.write(b"abc")
    with pytest.raises(StorageFull, match="No space left"):
        store.files.finish(upload, "a")
    assert list((tmp_path / "files").iterdir()) == []
    assert store.files.sizes() == (0, 0)


def test_what_a_killed_process_left_is_swept(store, tmp_path, clock):
    upload = store.files.begin("t")
    upload.write(b"abc")
    store.leave()  # as if its lease had ended
    assert store.files.sweep() == 1
    assert list((tmp_path / "files").iterdir()) == []
    assert store.files.sizes() == (0, 0)


def test_files_expire_unless_a_batch_reads_them(store, clock):
    kept, gone = put(store, lines_of(1)), put(store, b"x")
    store.batches.create(new(kept))
    clock.now += 31 * 86400
    store.renew()
    store.files.sweep()
    assert store.files.get("t", kept.file_id) == kept
    with pytest.raises(ResourceNotFound):
        store.files.get("t", gone.file_id)


def test_a_file_is_not_deleted_while_a_batch_reads_it(store):
    file = put(store, lines_of(1))
    batch = store.batches.create(new(file))
    with pytest.raises(Conflict, match=batch.batch_id):
        store.files.delete("t", file.file_id)
    batch = store.batches.cancel("t", batch.batch_id)
    assert store.batches.own(batch.batch_id, batch.status)
    store.write_results(batch)
    store.files.delete("t", file.file_id)
    with pytest.raises(ResourceNotFound):
        store.files.read(file.file_id, 0, 1)


def test_a_folder_belongs_to_one_router(store, tmp_path, clock):
    with pytest.raises(SettingsError, match=r"batch\.directory: another router"):
        open_store(tmp_path, clock)


# -- tenants ----------------------------------------------------------------------------


def test_nothing_is_shared_between_tenants(store):
    file = put(store, lines_of(1), "alice")
    batch = store.batches.create(new(file, "alice"))
    for call in (
        lambda: store.files.get("bob", file.file_id),
        lambda: store.files.delete("bob", file.file_id),
        lambda: store.batches.create(new(file, "bob")),
        lambda: store.batches.get("bob", batch.batch_id),
        lambda: store.batches.cancel("bob", batch.batch_id),
    ):
        with pytest.raises(ResourceNotFound):
            call()
    assert store.batches.page("bob", after=None, limit=9) == ([], False)
    assert store.batches.page("alice", after=None, limit=9) == ([batch], False)


# -- validation -------------------------------------------------------------------------


def test_invalid_lines_are_answered_and_the_rest_runs(tmp_path, clock):
    store = open_store(tmp_path, clock, max_lines=5, max_line_bytes=200)
    content = b"\n".join(
        [line("a"), b"{", line("a"), b"", line("b", url="/x"), line("x" * 200), line("c")]
    )
    batch = running(store, content)
    assert (batch.status, batch.total, batch.failed) == (Status.IN_PROGRESS, 6, 5)
    problems = [(each["code"], each["line"]) for each in json.loads(batch.errors_json)]
    expected = {
        "invalid_json_line": 2,
        "duplicate_custom_id": 3,
        "mismatched_endpoint": 5,
        "line_too_long": 6,
        "too_many_lines": 7,
    }
    assert problems == list(expected.items())
    assert [claim.line for claim in store.lines.claim(batch.batch_id, 9)] == [1]
    answer(store, batch, 1)
    ended = finish(store, batch)
    assert (ended.status, ended.completed, ended.failed) == (Status.COMPLETED, 1, 5)
    errors = results(store, ended.error_file_id)
    assert {each["error"]["code"]: each["error"]["line"] for each in errors} == expected
    assert [each["custom_id"] for each in errors] == [None, "a", "b", None, None]
    assert all(f"line {each['error']['line']}: " in each["error"]["message"] for each in errors)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"{\n}"])
def test_a_file_without_a_line_to_run_fails_the_batch(store, content):
    batch = running(store, content)
    assert batch.status is Status.FAILED
    assert json.loads(batch.errors_json)
    assert store.lines.counts() == {}


def test_a_validation_that_was_interrupted_starts_again(store):
    batch = store.batches.create(new(put(store, lines_of(600))))
    store.batches.own(batch.batch_id, batch.status)
    store.validate(batch)
    with store._database.write() as connection:
        connection.exec_driver_sql("UPDATE batch_batches SET status = 'validating'")
    store.batches.own(batch.batch_id, Status.VALIDATING)
    store.validate(batch)
    assert store.batches.get("t", batch.batch_id).total == 600
    assert store.lines.counts() == {0: 600}


# -- lines ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cancelled", "taken over"])
def test_a_process_that_loses_a_batch_stops_validating_it(tmp_path, clock, monkeypatch, loss):
    store = open_store(tmp_path, clock)
    batch = store.batches.create(new(put(store, lines_of(600))))
    assert store.batches.own(batch.batch_id, Status.VALIDATING)
    slices, add = [], store.lines.add

    def losing(batch_id, lines):
        slices.append(add(batch_id, lines))
        if loss == "cancelled":
            store.batches.cancel("t", batch_id)
        else:
            with store._database.write() as connection:
                connection.execute(update(BATCHES).values(owner="another"))
        return slices[-1]

    monkeypatch.setattr(store.lines, "add", losing)
    store.validate(batch)
    assert len(slices) == 1
    assert sum(store.lines.counts().values()) == 256
    # Nor does it decide what becomes of the batch.
    store.batches.validated(batch.batch_id, 600, 0, [])
    store.batches.fail(batch.batch_id, [])
    status = store.batches.get("t", batch.batch_id).status
    assert status is (Status.CANCELLING if loss == "cancelled" else Status.VALIDATING)


def test_a_batch_whose_input_file_is_lost_fails(store, tmp_path):
    file = put(store, lines_of(3))
    batch = store.batches.create(new(file))
    (tmp_path / "files" / file.file_id).unlink()
    assert store.batches.own(batch.batch_id, Status.VALIDATING)
    store.validate(batch)
    found = store.batches.get("t", batch.batch_id)
    assert found.status is Status.FAILED
    assert json.loads(found.errors_json)[0]["code"] == "input_file_lost"


@pytest.mark.parametrize("committed", [False, True])
def test_results_survive_a_database_that_fails_when_the_batch_ends(store, monkeypatch, committed):
    batch = running(store, lines_of(2))
    answer(store, batch, 1, 2)
    store.batches.close(batch.batch_id, Status.COMPLETED)
    closed = store.batches.get("t", batch.batch_id)
    assert store.batches.own(closed.batch_id, closed.status)
    end = store.batches.end

    def failing(*args):
        if committed:
            end(*args)
        raise NotReady("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(store.batches, "end", failing)
        with pytest.raises(NotReady):
            store.write_results(closed)
    if not committed:
        assert store.write_results(closed)
    store.sweep()
    ended = store.batches.get("t", batch.batch_id)
    assert ended.status is Status.COMPLETED
    found = [each["custom_id"] for each in results(store, ended.output_file_id)]
    assert found == ["id-0", "id-1"]
    # The input file and the result file, and no lines.
    assert store.files.sizes()[0] == 2
    assert store.lines.counts() == {}


def test_a_file_whose_creation_may_have_been_committed_is_swept(store, monkeypatch):
    write = store._database.write

    @contextlib.contextmanager
    def failing():
        with write() as connection:
            yield connection
        raise NotReady("the connection was lost")

    with monkeypatch.context() as patch:
        patch.setattr(store.files._database, "write", failing)
        with pytest.raises(NotReady):
            store.files.begin("t")
    assert store.files.sizes()[0] == 1
    store.sweep()
    assert store.files.sizes()[0] == 0


@pytest.mark.parametrize("failing", ["storage", "database"])
def test_uploads_that_cannot_be_discarded_are_removed_later(tmp_path, clock, monkeypatch, failing):
    store = open_store(tmp_path, clock, tenant_files=1)
    upload = store.files.begin("t")
    upload.write(b"x")

    def fail(*_args):
        raise StorageFull("no storage") if failing == "storage" else NotReady("no database")

    with monkeypatch.context() as patch:
        if failing == "storage":
            patch.setattr(store.files._objects, "delete", fail)
        else:
            patch.setattr(store.files._database, "write", fail)
        store.files.abort(upload)
    assert store.files.sizes()[0] == 1
    if failing == "storage":
        put(store, b"x")  # it no longer counts towards the limit
        assert store.files.sweep() == 1
    else:
        assert store.files.sweep() == 1
        put(store, b"x")
    assert len(list((tmp_path / "files").iterdir())) == 1


def test_memory_does_not_grow_with_the_file(tmp_path, clock):
    peaks = []
    tracemalloc.start()
    try:
        for count in (2_000, 20_000):
            store = open_store(tmp_path / str(count), clock)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            upload = store.files.begin("t")
            for number in range(count):
                upload.write(line(f"id-{number}", text="x" * 1000) + b"\n")
            file = store.files.finish(upload, "lines.jsonl")
            batch = store.batches.create(new(file))
            assert store.batches.own(batch.batch_id, Status.VALIDATING)
            store.validate(batch)
            ended = finish(store, store.batches.get("t", batch.batch_id), Status.CANCELLED)
            errors = store.files.get("t", ended.error_file_id)
            assert errors.bytes > 100 * count
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    # The larger file has 22 MB, its results 5 MB.
    assert peaks[1] < peaks[0] + 2**20


def test_lines_with_the_same_prefix_are_claimed_together(store):
    prompts = [[{"role": "system", "content": text}] for text in "abcabc"]
    content = b"\n".join(line(str(n), messages=each) for n, each in enumerate(prompts))
    batch = running(store, content)
    claimed = [claim.line for claim in store.lines.claim(batch.batch_id, 4)]
    claimed += [claim.line for claim in store.lines.claim(batch.batch_id, 4)]
    assert sorted(claimed) == [1, 2, 3, 4, 5, 6]
    pairs = {tuple(claimed[at : at + 2]) for at in (0, 2, 4)}
    assert pairs == {(1, 4), (2, 5), (3, 6)}


def test_a_line_is_answered_once(store):
    batch = running(store, lines_of(3))
    store.lines.claim(batch.batch_id, 3)
    assert answer(store, batch, 1, 2, text="first") == 2
    assert answer(store, batch, 2, 3, completed=False, text="second") == 1
    found = store.batches.get("t", batch.batch_id)
    assert (found.completed, found.failed) == (2, 1)
    ended = finish(store, batch)
    assert [each["response"] for each in results(store, ended.output_file_id)] == ["first"] * 2
    assert [each["custom_id"] for each in results(store, ended.error_file_id)] == ["id-2"]


def test_the_lines_of_a_process_without_a_lease_are_taken_over(store, clock):
    batch = running(store, lines_of(2))
    (first, second) = store.lines.claim(batch.batch_id, 2)
    answer(store, batch, first.line)
    store.renew()
    assert store.lines.take_over(batch.batch_id) == 0
    assert store.lines.claim(batch.batch_id, 2) == []
    clock.now += 31
    assert store.lines.take_over(batch.batch_id) == 1
    assert store.lines.claim(batch.batch_id, 2) == [second]
    # The first owner may still answer: one of the two answers counts.
    assert answer(store, batch, second.line) == 1
    assert answer(store, batch, second.line) == 0


def test_lines_are_given_back(store):
    batch = running(store, lines_of(2))
    claims = store.lines.claim(batch.batch_id, 2)
    answer(store, batch, claims[0].line)
    store.lines.give_back(claims)
    assert store.lines.claim(batch.batch_id, 2) == claims[1:]


# -- ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(Status.EXPIRED, "batch_expired"), (Status.CANCELLED, "batch_cancelled")],
)
def test_a_batch_that_ends_early_keeps_its_answers(store, outcome, code):
    batch = running(store, lines_of(3))
    store.lines.claim(batch.batch_id, 2)
    answer(store, batch, 2)
    if outcome is Status.CANCELLED:
        store.batches.cancel("t", batch.batch_id)
    ended = finish(store, batch, outcome)
    assert (ended.status, ended.total, ended.completed, ended.failed) == (outcome, 3, 1, 0)
    assert [each["custom_id"] for each in results(store, ended.output_file_id)] == ["id-1"]
    errors = results(store, ended.error_file_id)
    assert [(each["custom_id"], each["error"]["code"]) for each in errors] == [
        ("id-0", code),
        ("id-2", code),
    ]
    assert answer(store, batch, 1) == 0
    assert store.lines.counts() == {}


def test_results_are_files_of_the_tenant_in_the_order_of_the_input(store):
    batch = running(store, lines_of(500))
    claims = store.lines.claim(batch.batch_id, 500)
    for claim in reversed(claims):
        answer(store, batch, claim.line)
    ended = finish(store, batch)
    found = results(store, ended.output_file_id)
    assert [each["custom_id"] for each in found] == [f"id-{n}" for n in range(500)]
    assert len({each["id"] for each in found}) == 500
    assert ended.error_file_id is None
    file = store.files.get("t", ended.output_file_id)
    assert (file.purpose, file.filename) == ("batch_output", f"{batch.batch_id}_output.jsonl")


def test_results_are_written_by_one_process_only(store, clock):
    batch = running(store, lines_of(1))
    store.batches.close(batch.batch_id, Status.COMPLETED)
    closed = store.batches.get("t", batch.batch_id)
    assert store.batches.own(closed.batch_id, closed.status)
    with store._database.write() as connection:
        connection.exec_driver_sql("UPDATE batch_batches SET owner = 'another'")
        connection.exec_driver_sql("INSERT INTO batch_owners VALUES ('another', 2e9)")
    assert not store.batches.own(closed.batch_id, closed.status)
    assert not store.write_results(closed)
    page, _ = store.files.page("t", after=None, limit=9, descending=True, purpose=None)
    assert [file.purpose for file in page] == ["batch"]


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED])
def test_a_batch_that_has_ended_cannot_be_cancelled(store, status):
    if status is Status.FAILED:
        batch = running(store, b"")
    else:
        batch = finish(store, running(store, lines_of(1)))
    with pytest.raises(Conflict, match=status):
        store.batches.cancel("t", batch.batch_id)


def test_unended_batches_are_limited(tmp_path, clock):
    store = open_store(tmp_path, clock, tenant_batches=1)
    file = put(store, lines_of(1))
    store.batches.create(new(file))
    with pytest.raises(Overloaded, match="tenant_batches"):
        store.batches.create(new(file))


def test_old_batches_are_removed(store, clock):
    batch = finish(store, running(store, lines_of(1)))
    store.batches.sweep()
    assert store.batches.get("t", batch.batch_id) == batch
    clock.now += 31 * 86400
    store.batches.sweep()
    with pytest.raises(ResourceNotFound):
        store.batches.get("t", batch.batch_id)

"""The writer: database outages, refused records, a full disk, and shutdown."""

import threading

import pytest
from sqlalchemy.exc import DataError, OperationalError

from serving.errors import SettingsError
from serving.ledger.records import to_line
from serving.ledger.spool import Spool
from serving.ledger.writer import BACKLOG, BATCH, LedgerWriter
from serving.telemetry.metrics import REGISTRY
from tests.support.ledgers import capacity, usage, usages
from tests.support.waiting import wait_until


class FakeDatabase:
    """Keeps rows by id; fails while ``down``, and rejects records named bad."""

    def __init__(self):
        self.rows = {}
        self.migrations = 0
        self.batches = []
        self.down = False
        self.later_version = False
        self.closed = False
        self.lose_answer = False

    def migrate(self):
        if self.later_version:
            raise SettingsError("the ledger's database has schema 9999")
        self._answer()
        self.migrations += 1

    def insert(self, records):
        self._answer()
        if any(getattr(record, "tenant", "") == "bad" for record in records):
            raise DataError("insert", None, Exception("refused"))
        self.batches.append(len(records))
        for record in records:
            self.rows.setdefault(getattr(record, "record_id", record), record)
        if self.lose_answer:
            self.lose_answer = False
            raise OperationalError("commit", None, Exception("connection lost"))

    def close(self):
        self.closed = True

    def _answer(self):
        if self.down:
            raise OperationalError("connect", None, Exception("connection refused"))


class Setup:
    def __init__(self, folder, **spool):
        self.now = 0.0
        self.database = FakeDatabase()
        self.folder = folder
        self.spool = Spool(folder, spool.get("max_bytes", 2**24), self.now)
        self.writer = self.new_writer()

    def new_writer(self):
        return LedgerWriter(self.spool, self.database, interval=0.001, monotonic=lambda: self.now)

    def append(self, *records):
        for record in records:
            self.spool.append(to_line(record), self.now)

    @property
    def ids(self):
        return [*self.database.rows]

    @property
    def segments(self):
        return sorted(path.name for path in self.folder.glob("*.*"))


@pytest.fixture
def setup(tmp_path):
    made = Setup(tmp_path)
    yield made
    made.spool.close()


def metric(name):
    return REGISTRY.get_sample_value(f"moe_ledger_{name}")


def test_records_are_inserted_and_their_segment_is_removed(setup):
    before = metric("records_written_total")
    setup.append(usage("a"), capacity(), usage("b"))
    setup.writer.flush()
    assert [each for each in setup.ids if isinstance(each, str)] == ["a", "b"]
    assert len(setup.database.rows) == 3
    assert setup.segments == []
    assert metric("records_written_total") - before == 3
    setup.writer.flush()
    assert setup.database.batches == [3]
    assert setup.database.migrations == 1


def test_a_segment_is_inserted_in_bounded_batches(setup):
    setup.append(*usages(2 * BATCH + 1))
    setup.writer.flush()
    assert setup.database.batches == [BATCH, BATCH, 1]


def test_records_wait_while_the_database_is_down_and_none_counts_twice(setup):
    setup.database.down = True
    setup.append(usage("a"))
    for number in range(3):
        with pytest.raises(OperationalError):
            setup.writer.flush()
        setup.now += 10
        setup.append(usage(f"b{number}"))
    assert metric("lag_seconds") == 20.0
    assert metric("spool_bytes") == setup.spool.size - len(to_line(usage("b2")))
    setup.database.down = False
    # The commit succeeds, but its response is lost: the records are inserted again.
    setup.database.lose_answer = True
    with pytest.raises(OperationalError):
        setup.writer.flush()
    setup.writer.flush()
    assert sorted(setup.ids) == ["a", "b0", "b1", "b2"]
    assert setup.segments == []
    assert metric("lag_seconds") == metric("spool_bytes") == 0


def test_a_database_that_was_replaced_is_migrated_again(setup):
    setup.writer.flush()
    setup.database.down = True
    setup.append(usage("a"))
    with pytest.raises(OperationalError):
        setup.writer.flush()
    setup.database.down = False
    setup.writer.flush()
    assert (setup.ids, setup.database.migrations) == (["a"], 2)


def test_a_segment_that_was_removed_holds_up_no_others(setup):
    setup.append(usage("a"))
    (segment,) = setup.spool.seal()
    segment.path.unlink()
    setup.append(usage("b"))
    setup.writer.flush()
    assert (setup.ids, setup.spool.size) == (["b"], 0)


def test_a_schema_of_a_later_version_keeps_the_records(setup):
    setup.database.later_version = True
    setup.append(usage("a"))
    with pytest.raises(SettingsError):
        setup.writer.flush()
    assert [len(segment.lines()) for segment in setup.spool.seal()] == [1]


def test_refused_records_and_lines_are_kept_apart_and_hold_up_no_others(setup):
    dropped = metric("records_dropped_total")
    setup.append(usage("a"), usage("x", tenant="bad"), usage("b"), usage("c"))
    setup.spool.append(b"no record\n", 0.0)
    setup.append(usage("d"))
    setup.writer.flush()
    assert sorted(setup.ids) == ["a", "b", "c", "d"]
    assert setup.segments == ["00000001.bad"]
    kept = (setup.folder / "00000001.bad").read_bytes().splitlines()
    assert sorted(kept) == sorted([to_line(usage("x", tenant="bad")).strip(), b"no record"])
    assert metric("records_dropped_total") - dropped == 2


def test_records_in_memory_are_inserted_without_a_spool(setup):
    records = usages(BATCH + 5)
    assert all(map(setup.writer.keep, records))
    setup.database.down = True
    with pytest.raises(OperationalError):
        setup.writer.flush()
    assert metric("backlog_records") == BATCH + 5
    setup.database.down = False
    setup.writer.flush()
    assert sorted(setup.ids) == sorted(record.record_id for record in records)
    assert metric("backlog_records") == 0


def test_records_in_memory_are_bounded(setup):
    record = usage()
    assert sum(setup.writer.keep(record) for _ in range(BACKLOG + 3)) == BACKLOG


def test_the_thread_retries_and_inserts_the_rest_at_the_end(setup):
    setup.database.down = True
    failures = metric("failures_total")
    setup.append(usage("a"))
    setup.writer.start()
    wait_until(lambda: metric("failures_total") - failures > 1)
    setup.database.down = False
    wait_until(lambda: setup.ids == ["a"])
    setup.append(usage("b"))
    setup.writer.stop(60)
    assert setup.ids == ["a", "b"]
    assert setup.database.closed


def test_the_thread_survives_an_error_that_nobody_expects(setup, monkeypatch):
    real, failed = setup.database.insert, threading.Event()

    def insert(records):
        if not failed.is_set():
            failed.set()
            raise RuntimeError("a bug")
        real(records)

    monkeypatch.setattr(setup.database, "insert", insert)
    setup.append(usage("a"))
    setup.writer.start()
    wait_until(lambda: setup.ids == ["a"])
    setup.writer.stop(60)

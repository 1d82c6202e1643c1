"""A router's ledger: a full disk, a clock set back, and a removed tenant."""

import errno
import sqlite3

import pytest

from serving.ledger.ledger import Ledger
from serving.ledger.query import GroupBy, Query
from serving.ledger.sums import usage_sums
from serving.ledger.writer import BACKLOG
from serving.settings import LedgerSettings
from serving.telemetry.metrics import REGISTRY
from tests.support.clock import ManualClock
from tests.support.ledgers import DAY, usage


@pytest.fixture
def made(tmp_path):
    return Ledger(LedgerSettings(directory=str(tmp_path), flush_interval=3600), ManualClock())


def rows(tmp_path):
    with sqlite3.connect(tmp_path / "ledger.sqlite") as connection:
        return connection.execute("SELECT record_id FROM ledger_requests").fetchall()


def dropped():
    return REGISTRY.get_sample_value("moe_ledger_records_dropped_total")


async def test_what_was_appended_is_in_the_database_after_the_stop(made, tmp_path):
    made.append(usage("before"))
    made.start()
    made.append(usage("after"))
    await made.stop()
    assert sorted(rows(tmp_path)) == [("after",), ("before",)]
    assert not list((tmp_path / "spool").glob("*.jsonl"))


async def test_a_full_disk_fails_no_request_and_loses_no_record_that_memory_holds(
    made, tmp_path, monkeypatch
):
    before = dropped()

    def full(_line, _now):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(made._spool, "append", full)
        for number in range(BACKLOG + 2):
            made.append(usage(f"r-{number}"))
    assert dropped() - before == 2
    made.append(usage("room again"))
    made.start()
    await made.stop()
    assert len(rows(tmp_path)) == BACKLOG + 1


async def test_a_clock_set_back_moves_records_but_loses_and_repeats_none(made):
    made.start()
    for number, at in enumerate((DAY + 90_000, DAY + 10, DAY + 90_000, DAY - 5)):
        made.append(usage(f"r-{number}", at=at))
    await made.stop()
    query = Query(DAY - 86_400, DAY + 2 * 86_400, group_by=frozenset())
    with made.database.connect() as connection:
        found = {each.start: each.tokens.requests for each in usage_sums(connection, query)}
    assert found == {DAY - 86_400: 1, DAY: 1, DAY + 86_400: 2}


async def test_a_tenant_that_is_no_longer_in_the_key_file_stays_in_the_ledger(made):
    """Nothing in the ledger refers to the key file."""
    made.start()
    made.append(usage("a", tenant="removed", key_id="removed-1"))
    await made.stop()
    query = Query(DAY, DAY + 86_400, group_by=frozenset({GroupBy.TENANT, GroupBy.KEY}))
    with made.database.connect() as connection:
        (found,) = usage_sums(connection, query)
    assert (found.tenant, found.key_id) == ("removed", "removed-1")

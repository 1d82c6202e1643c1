"""Router and PostgreSQL are killed in the middle of requests; none is lost or counted twice."""

import asyncio

import pytest

from serving.settings import LedgerSettings
from tests.ledger.history import Fleet, History, compare
from tests.support.postgres import MISSING, PROGRAMS, PostgresServer

REQUESTS = 240


@pytest.mark.skipif(not PROGRAMS.exists(), reason=MISSING)
async def test_every_request_that_a_client_saw_finish_is_in_the_ledger_once(tmp_path):
    server = PostgresServer()
    server.start()
    ledger = {"directory": str(tmp_path), "database_url": server.url(), "flush_interval": 0.05}
    fleet = Fleet(ledger)
    try:
        await fleet.start()
        history = History([fleet], seed=1)

        async def restart_database():
            await asyncio.to_thread(server.kill)
            # Requests finish while it is unavailable.
            await history.reach(len(history.finished) + 20)
            await asyncio.to_thread(server.start)

        await history.run(
            REQUESTS,
            8,
            [(40, fleet.kill), (80, restart_database), (150, fleet.kill), (190, restart_database)],
        )
        await fleet.stop()
        found = compare([LedgerSettings(**ledger)], history.finished)
    finally:
        await fleet.close()
        server.close()
    assert fleet.kills == 2
    assert found.finished == REQUESTS
    assert found.exact, found
    assert min(found.clients) > 0  # prompt, cached and output tokens
    assert not list((tmp_path / "spool").glob("*.jsonl"))

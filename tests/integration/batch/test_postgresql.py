"""Routers that share batches through a real PostgreSQL server."""

import asyncio
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.batch.records import Answer, Status
from serving.batch.result_lines import content_of
from serving.clock import SystemClock
from serving.errors import Conflict, Overloaded, ResourceNotFound, SettingsError
from tests.support.batches import BatchRouter, line, new, open_store, put, results, running
from tests.support.waiting import eventually

_numbers = itertools.count()
LINES = b"\n".join(line(f"id-{number}", name=str(number)) for number in range(200))


@pytest.fixture
def shared(tmp_path, postgres):
    """A function that opens the same storage again, as another router does."""
    url = postgres.create_database(f"batches_{next(_numbers)}")
    fields = {"database_url": url, "interval": 0.05, "lease": 1.0}
    opened = []

    def share(**more):
        opened.append(open_store(tmp_path, SystemClock(), **(fields | more)))
        return opened[-1]

    yield share
    for store in opened:
        asyncio.run(store.close())


def test_routers_that_start_together_create_the_tables_once(shared):
    with ThreadPoolExecutor(4) as threads:
        stores = list(threads.map(lambda _: shared(), range(4)))
    assert stores[0].batches.unfinished() == []


def test_routers_claim_different_lines_and_answer_each_once(shared):
    stores = [shared(lease=60.0) for _ in range(4)]
    batch = running(stores[0], LINES)

    def work(store):
        claimed = []
        while claims := store.lines.claim(batch.batch_id, 7):
            claimed += [claim.line for claim in claims]
        answers = [
            Answer(batch.batch_id, number, True, content_of(str(number)))
            for number in range(1, 201)
        ]
        return claimed, store.lines.answer(batch.batch_id, answers)

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(work, stores))
    assert sorted(itertools.chain(*(claimed for claimed, _ in done))) == [*range(1, 201)]
    assert sum(recorded for _, recorded in done) == 200
    found = stores[1].batches.get("t", batch.batch_id)
    assert (found.completed, found.failed) == (200, 0)


def test_the_limit_of_files_holds_for_all_routers_together(shared):
    stores = [shared(tenant_files=3) for _ in range(4)]

    def upload(store):
        try:
            put(store, b"x")
        except Overloaded:
            return 0
        return 1

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(upload, stores * 2)) == 3


def test_the_limit_of_batches_holds_for_all_routers_together(shared):
    stores = [shared(tenant_batches=3) for _ in range(4)]
    file = put(stores[0], LINES)

    def create(store):
        try:
            store.batches.create(new(file))
        except Overloaded:
            return 0
        return 1

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(create, stores * 2)) == 3


def test_a_file_is_not_deleted_while_another_router_creates_a_batch_of_it(shared):
    one, other = shared(tenant_batches=99), shared()

    def create(file):
        try:
            return one.batches.create(new(file))
        except ResourceNotFound:
            return None

    def delete(file):
        try:
            other.files.delete("t", file.file_id)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        for _ in range(30):
            file = put(one, b"x")
            created, deleted = threads.submit(create, file), threads.submit(delete, file)
            batch = created.result()
            assert (batch is None) == deleted.result()
            if batch is not None:
                one.batches.cancel("t", batch.batch_id)


def test_an_invalid_password_file_is_refused(shared, tmp_path):
    with pytest.raises(SettingsError, match=r"batch\.database_password_file"):
        shared(database_password_file=str(tmp_path / "missing"))


@pytest.mark.asyncio
async def test_the_lines_of_a_dead_router_are_taken_over_and_a_killed_database_delays(
    shared, postgres
):
    dead, alive = BatchRouter(shared()), BatchRouter(shared())
    dead.hold.clear()
    alive.hold.clear()
    file = await alive.store.run(put, alive.store, LINES)
    batch = await alive.store.run(alive.store.batches.create, new(file))
    await eventually(lambda: dead.sent and alive.sent, "lines at both routers")
    # As if the process had been killed: nothing is released.
    dead.task.cancel()
    await asyncio.wait({dead.task})
    postgres.kill()
    alive.hold.set()
    await asyncio.to_thread(postgres.start)
    ended = await alive.ended(batch)
    assert (ended.status, ended.completed, ended.failed) == (Status.COMPLETED, 200, 0)
    found = await alive.store.run(results, alive.store, ended.output_file_id)
    assert [each["custom_id"] for each in found] == [f"id-{number}" for number in range(200)]
    both = {json.loads(each.body)["name"] for each in dead.sent}
    assert both <= {json.loads(each.body)["name"] for each in alive.sent}
    await dead.stop()
    await alive.stop()

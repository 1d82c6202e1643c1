import asyncio
import json
import threading

import pytest
import pytest_asyncio
from sqlalchemy import update

from serving.batch.line_requests import LineResponse
from serving.batch.records import Status
from serving.batch.schema import CLAIMED, LINES, OPEN
from serving.clock import SystemClock
from serving.errors import NotReady
from tests.support.batches import BatchRouter, ShiftedClock, open_store, results
from tests.support.waiting import PATIENCE, eventually

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def start(tmp_path):
    started = []

    def begin(**settings):
        # A machine that stops for seconds must not end a lease: the lines would be sent again.
        fields = {"interval": 0.05, "lease": 60.0} | settings
        started.append(BatchRouter(open_store(tmp_path, SystemClock(), **fields)))
        return started[-1]

    yield begin
    for each in started:
        await each.stop()


async def test_a_batch_runs_to_its_end(start):
    router = start()
    batch = await router.submit(*map(str, range(40)))
    ended = await router.ended(batch)
    assert (ended.status, ended.completed, ended.failed) == (Status.COMPLETED, 40, 0)
    assert sorted(int(json.loads(each.body)["name"]) for each in router.sent) == [*range(40)]
    assert len(results(router.store, ended.output_file_id)) == 40


async def test_lines_are_sent_again_unless_they_are_at_fault(start):
    router = start()
    busy = LineResponse(503, b'{"error": {"reason": "NOT_READY"}}')
    wrong = LineResponse(400, b'{"error": {"reason": "INVALID_REQUEST"}}')
    router.responses = {"busy": [busy], "wrong": [wrong]}
    ended = await router.ended(await router.submit("busy", "wrong", "fine"))
    assert (ended.completed, ended.failed) == (2, 1)
    (failed,) = results(router.store, ended.error_file_id)
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("wrong", 400)
    assert len(router.sent) == 4


async def test_a_line_has_the_time_of_its_batch(start):
    router = start()
    await router.ended(await router.submit("a", window=500))
    (request,) = router.sent
    assert 400 < request.deadline - SystemClock().monotonic() <= 500


async def test_the_lines_of_a_cancelled_batch_stop(start):
    router = start()
    router.hold.clear()
    batch = await router.submit("a", "b")
    await eventually(lambda: len(router.sent) == 2, "the lines")
    await router.store.run(router.store.batches.cancel, "t", batch.batch_id)
    ended = await router.ended(batch)
    assert (ended.status, ended.completed) == (Status.CANCELLED, 0)
    await eventually(lambda: not router.runner._running, "the end of the lines")


async def test_a_batch_ends_with_its_window(start):
    router = start()
    router.responses = {"late": [LineResponse(429, b"{}")] * 99}
    batch = await router.submit("late", "soon", window=500)

    async def answered():
        found = await router.store.run(router.store.batches.get, "t", batch.batch_id)
        return found.completed == 1

    await eventually(answered, "the first answer")
    router.clock.ahead = 501
    ended = await router.ended(batch)
    assert (ended.status, ended.completed, ended.failed) == (Status.EXPIRED, 1, 0)


async def test_a_clock_that_is_set_back_loses_no_line(tmp_path):
    clock = ShiftedClock()
    router = BatchRouter(open_store(tmp_path, clock, interval=0.05, lease=60.0))
    router.runner._clock = clock
    try:
        router.hold.clear()
        batch = await router.submit("a", "b", "c")
        await eventually(lambda: len(router.sent) == 3, "the lines")
        clock.ahead = -7200.0
        router.hold.set()
        later = await router.submit("d")
        for each, lines in ((batch, 3), (later, 1)):
            ended = await router.ended(each)
            assert (ended.status, ended.completed) == (Status.COMPLETED, lines)
        assert len(router.sent) == 4
    finally:
        await router.stop()


async def test_the_next_process_continues(start):
    first = start()
    first.hold.clear()
    batch = await first.submit("a", "b", "c")
    await eventually(lambda: len(first.sent) == 3, "the lines")
    await first.stop()
    second = start()
    ended = await second.ended(batch)
    assert (ended.status, ended.completed) == (Status.COMPLETED, 3)
    assert len(second.sent) == 3


async def test_a_line_that_is_claimed_again_while_it_runs_is_not_started_twice(start):
    router = start()
    router.hold.clear()
    batch = await router.submit("a", "b")
    await eventually(lambda: len(router.sent) == 2, "the lines")
    # As if the lease had ended: another router takes the lines over, and does not run them.
    with router.store._database.write() as connection:
        connection.execute(update(LINES).values(state=OPEN, owner=None))
    router.runner.look_soon()

    async def claimed():
        return (await router.store.run(router.store.lines.counts)).get(CLAIMED) == 2

    await eventually(claimed, "the second claims")
    running = dict(router.runner._running)
    router.hold.set()
    ended = await router.ended(batch)
    assert (ended.completed, len(router.sent), len(running)) == (2, 2, 2)
    await eventually(lambda: not router.runner._running, "the end of the lines")


async def test_a_claim_that_was_committed_although_the_database_failed_is_released(
    start, monkeypatch
):
    router = start(lease=0.3)
    claim, lost = router.store.lines.claim, []

    def failing(batch_id, most):
        claims = claim(batch_id, most)
        if claims and not lost:
            lost.extend(claims)
            raise NotReady("the connection was lost")
        return claims

    monkeypatch.setattr(router.store.lines, "claim", failing)
    ended = await router.ended(await router.submit("a", "b", "c"))
    assert (ended.status, ended.completed) == (Status.COMPLETED, 3)
    assert len(lost) == 3


async def test_lines_claimed_while_it_stops_do_not_start(start, monkeypatch):
    router = start()
    claim = router.store.lines.claim
    claiming, go_on = threading.Event(), threading.Event()

    def slow(*args):
        claiming.set()
        assert go_on.wait(PATIENCE)
        return claim(*args)

    monkeypatch.setattr(router.store.lines, "claim", slow)
    batch = await router.submit("a", "b")
    await eventually(claiming.is_set, "the claim")
    stopping = asyncio.create_task(router.runner.stop())
    await eventually(lambda: router.runner._stopping)
    go_on.set()
    await stopping
    await router.stop()
    assert (router.sent, router.runner._running) == ([], {})
    second = start()
    assert (await second.ended(batch)).completed == 2


async def test_tenants_run_at_the_same_time(start):
    router = start(max_running_lines=4)
    router.hold.clear()
    await router.submit(*"abcdef", tenant="one")
    await router.submit(*"abcdef", tenant="two")

    def shared():
        tenants = [each.tenant for each in router.sent]
        return {"one", "two"} == {*tenants}

    await eventually(lambda: router.sent, "the first tenant")
    router.hold.set()
    await eventually(shared, "both tenants")


async def test_a_database_that_fails_only_delays(start, monkeypatch):
    router = start()
    answer, failures = router.store.lines.answer, []

    def failing(batch_id, answers):
        if not failures:
            failures.append(answers)
            raise NotReady("the database is down")
        return answer(batch_id, answers)

    monkeypatch.setattr(router.store.lines, "answer", failing)
    ended = await router.ended(await router.submit("a"))
    assert (ended.completed, len(failures), len(router.sent)) == (1, 1, 1)


async def test_a_failure_that_nobody_expects_only_delays(start, monkeypatch):
    router = start()
    answer, failures = router.store.lines.answer, []

    def failing(batch_id, answers):
        if not failures:
            failures.append(answers)
            raise RuntimeError("a defect")
        return answer(batch_id, answers)

    monkeypatch.setattr(router.store.lines, "answer", failing)
    ended = await router.ended(await router.submit("a"))
    assert (ended.completed, len(failures), len(router.sent)) == (1, 1, 1)


async def test_a_line_whose_request_raises_is_sent_a_few_times(start):
    router = start()
    respond, failures = router.runner._send, []

    async def failing(request):
        if json.loads(request.body)["name"] == "bad":
            failures.append(request)
            raise RuntimeError("a bug")
        return await respond(request)

    router.runner._send = failing
    ended = await router.ended(await router.submit("bad", "good"))
    assert (ended.completed, ended.failed, len(failures)) == (1, 1, 4)

import asyncio
from dataclasses import replace

import pytest
import uvloop

from serving.batch.scheduler import LineScheduler
from serving.request_context import RequestContext
from serving.routing.snapshot import RankLoad
from serving.settings import BatchSettings
from tests.support.fleets import fleet, group, rank
from tests.support.waiting import PATIENCE, eventually, loop_turns


class Fleet:
    """One rank with room for four sequences, and the lines that run on it."""

    def __init__(self, weights=None, **settings):
        self.others = 0
        self.load = RankLoad()
        self.lines = {}
        self.stopped = []
        self.order = []
        self.scheduler = LineScheduler(
            self.snapshot,
            BatchSettings(**settings),
            lambda tenant: (weights or {}).get(tenant, 1.0),
        )

    @property
    def rank(self):
        inflight = self.others + len(self.lines)
        return replace(rank(0, inflight=inflight, max_num_seqs=4), load=self.load)

    def snapshot(self):
        return fleet(group(self.rank))

    def start(self, name, tenant="t"):
        return asyncio.create_task(self._line(name, tenant))

    async def _line(self, name, tenant):
        context = RequestContext(tenant)
        while True:
            await self.scheduler.turn(context, 10)
            taken = asyncio.Event()

            def give_way(taken=taken):
                self.lines.pop(name)()
                self.stopped.append(name)
                taken.set()

            self.order.append(name)
            self.lines[name] = self.scheduler.placed(self.rank.rank_id, give_way)
            await taken.wait()
            context.record.resumes += 1

    async def has(self, *names):
        await eventually(lambda: list(self.lines) == list(names), f"lines {names}")

    def end(self, name):
        self.lines.pop(name)()


@pytest.fixture
async def tasks():
    started = []
    yield started
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


async def test_lines_run_up_to_the_room(tasks):
    on = Fleet()
    tasks += [on.start(number) for number in range(6)]
    await on.has(0, 1, 2, 3)
    assert on.scheduler.waiting == 2
    on.end(1)
    await on.has(0, 2, 3, 4)


async def test_the_newest_lines_give_way_to_a_request_at_once_and_come_back_first(tasks):
    on = Fleet(itl_slo=1.0)
    tasks += [on.start(number) for number in range(6)]
    await on.has(0, 1, 2, 3)
    # A step takes a third of a second for each sequence: three are permitted.
    on.load = RankLoad(running_requests=4, step_seconds=4 / 3, engine_steps_total=1)
    await eventually(lambda: on.scheduler._models, "a look")
    on.others = 1
    on.scheduler.arrived(on.rank.rank_id)
    assert on.stopped == [3, 2]
    assert list(on.lines) == [0, 1]
    await loop_turns()
    on.others = 0
    await eventually(lambda: len(on.lines) == 4, "the return of the lines")
    assert on.order == [0, 1, 2, 3, 3, 2]


async def test_a_request_elsewhere_takes_nothing(tasks):
    on = Fleet()
    tasks.append(on.start(0))
    await on.has(0)
    on.scheduler.arrived(rank(0, group="g1").rank_id)
    assert on.stopped == []


async def test_a_request_without_a_rank_gets_a_quarter(tasks):
    on = Fleet()
    assert not on.scheduler.make_room()
    tasks += [on.start(number) for number in range(4)]
    await on.has(0, 1, 2, 3)
    assert on.scheduler.make_room()
    assert on.stopped == [3]


async def test_tenants_share_the_room_by_weight(tasks):
    on = Fleet(weights={"b": 3.0})
    tasks += [on.start(("a", number), "a") for number in range(12)]
    tasks += [on.start(("b", number), "b") for number in range(12)]
    for _ in range(12):
        await eventually(lambda: len(on.lines) == 4, "four lines")
        on.end(next(iter(on.lines)))
    await eventually(lambda: len(on.order) == 16, "the last turn")
    assert sum(tenant == "b" for tenant, _ in on.order) in {11, 12}


async def test_a_cancelled_turn_is_granted_to_another(tasks):
    on = Fleet()
    tasks += [on.start(number) for number in range(6)]
    await on.has(0, 1, 2, 3)
    tasks[4].cancel()
    on.end(0)
    await on.has(1, 2, 3, 5)


async def test_a_turn_that_is_cancelled_after_it_was_granted_is_not_lost(tasks):
    on = Fleet()
    first = asyncio.create_task(on.scheduler.turn(RequestContext(), 1))
    await loop_turns(1)
    on.scheduler._look()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    tasks += [on.start(number) for number in range(4)]
    async with asyncio.timeout(PATIENCE):
        await on.has(0, 1, 2, 3)


async def test_a_declined_turn_is_not_lost(tasks):
    on = Fleet()
    async with asyncio.timeout(PATIENCE):
        for _ in range(9):
            await on.scheduler.turn(RequestContext(), 1)
            on.scheduler.declined()


async def test_nothing_runs_on_a_timer_without_lines(tasks):
    on = Fleet()
    tasks.append(on.start(0))
    await on.has(0)
    on.end(0)
    await eventually(lambda: on.scheduler._timer is None, "the end of the timer")


def test_turns_are_granted_on_the_event_loop_of_routers():
    async def run():
        on = Fleet()
        tasks = [on.start(number) for number in range(6)]
        await on.has(0, 1, 2, 3)
        on.end(0)
        await on.has(1, 2, 3, 4)
        on.scheduler.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())

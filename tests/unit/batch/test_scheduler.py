import asyncio
from dataclasses import replace
from math import inf

import pytest
import uvloop

from serving.batch.scheduler import LineScheduler, ModelSource
from serving.request_context import RequestContext
from serving.routing.snapshot import RankLoad
from serving.settings import BatchSettings
from serving.telemetry.model_counters import ModelCounters
from tests.support.fleets import fleet, group, rank
from tests.support.waiting import PATIENCE, eventually, loop_turns


class Fleet:
    """One rank with room for four sequences, and the lines that run on it."""

    def __init__(self, weights=None, sequences=4, **settings):
        self.sequences = sequences
        self.others = 0
        self.load = RankLoad()
        self.counters = ModelCounters(["p"])
        self.lines = {}
        self.stopped = []
        self.order = []
        self.scheduler = LineScheduler(
            ModelSource(self.snapshot, BatchSettings(**settings), self.counters),
            lambda tenant: (weights or {}).get(tenant, 1.0),
        )

    @property
    def rank(self):
        inflight = self.others + len(self.lines)
        return replace(rank(0, inflight=inflight, max_num_seqs=self.sequences), load=self.load)

    def snapshot(self):
        return fleet(group(self.rank))

    def start(self, name, tenant="t"):
        return asyncio.create_task(self._line(name, tenant))

    async def _line(self, name, tenant):
        context = RequestContext(tenant)
        while True:
            await self.scheduler.turn(context, 10, 5)
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

    async def steps(self, seconds, sequences, steps=1):
        """Report steps, and wait until the scheduler knows them."""
        old = self.load
        self.load = replace(
            old,
            engine_steps_total=old.engine_steps_total + steps,
            generated_tokens_total=old.generated_tokens_total + steps * sequences,
            busy_seconds_total=old.busy_seconds_total + steps * seconds,
        )
        group = self.scheduler._groups[self.rank.rank_id.group]
        known = group.model.weight
        await eventually(lambda: group.model.weight != known, "a look")

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
    assert on.counters.lines == 6
    on.end(1)
    await on.has(0, 2, 3, 4)
    assert on.counters.lines == 5


async def test_the_newest_lines_give_way_to_a_request_at_once_and_come_back_first(tasks):
    on = Fleet(itl_slo=1.0)
    tasks += [on.start(number) for number in range(6)]
    await on.has(0, 1, 2, 3)
    # A step takes a third of a second for each sequence: three are permitted.
    await on.steps(seconds=4 / 3, sequences=4)
    on.others = 1
    on.scheduler.arrived(on.rank.rank_id)
    assert on.stopped == [3, 2]
    assert list(on.lines) == [0, 1]
    await loop_turns()
    on.others = 0
    await eventually(lambda: len(on.lines) == 4, "the return of the lines")
    assert on.order == [0, 1, 2, 3, 3, 2]


async def test_lines_start_one_at_a_time_alongside_other_requests(tasks):
    on = Fleet(itl_slo=1.0, sequences=64)
    tasks.append(on.start(0))
    await on.has(0)
    await on.steps(seconds=0.05, sequences=1)
    on.others = 2
    group = on.scheduler._groups[on.rank.rank_id.group]
    group.starts_at = inf
    tasks += [on.start(number) for number in range(1, 4)]
    await eventually(lambda: on.scheduler.waiting == 3, "the lines")
    on.scheduler._look()
    await loop_turns()
    assert list(on.lines) == [0]
    group.starts_at = 0.0
    on.scheduler._look()
    assert on.scheduler.waiting == 2
    assert group.starts_at > asyncio.get_running_loop().time() - PATIENCE
    await eventually(lambda: len(on.lines) == 4, "all lines")


async def test_a_pause_of_other_requests_ends_their_peak(tasks):
    on = Fleet(peak_window=0.5)
    tasks.append(on.start(0))
    await on.has(0)
    group = on.scheduler._groups[on.rank.rank_id.group]
    on.others = 3
    await eventually(lambda: group.peak == 3, "the peak")
    on.others = 0
    await eventually(lambda: group.peak == 0, "its end")


async def test_slow_first_tokens_of_the_model_leave_less_room(tasks):
    on = Fleet(itl_slo=1.0, ttft_slo=0.1)
    tasks.append(on.start(0))
    await on.has(0)
    on.counters.pools["p"].first_token.observe(50.0)
    await eventually(lambda: on.scheduler._factor < 0.5, "less room")


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
    first = asyncio.create_task(on.scheduler.turn(RequestContext(), 1, 1))
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
            await on.scheduler.turn(RequestContext(), 1, 1)
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

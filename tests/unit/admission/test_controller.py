"""The controller: placement, rejection, and cleanup."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission.api import AdmissionRequest
from serving.admission.controller import AdmissionController
from serving.admission.quota_store import MemoryQuotas
from serving.admission.quotas import Quotas, TenantLimits, default_limits
from serving.errors import (
    CancelledByOperator,
    DeadlineExceeded,
    InvalidRequest,
    NotReady,
    Overloaded,
)
from serving.request_context import Priority, RequestContext
from serving.settings import AdmissionSettings
from serving.telemetry.metrics import REGISTRY
from tests.support.clock import ManualClock
from tests.support.dispatching import ROUTING, SlotDispatcher, SlotStream
from tests.support.waiting import PATIENCE, loop_turns


class World:
    """A controller on slots, with a manual clock."""

    def __init__(self, fleet, limits_of=None, **settings):
        # A timer that fires only when the test triggers it.
        settings = {"recheck_interval": 1000.0, **settings}
        self.fleet = fleet
        self.clock = ManualClock()
        settings = AdmissionSettings(**settings)
        limits_of = limits_of or default_limits(settings)
        self.store = MemoryQuotas(self.clock.monotonic)
        self.controller = AdmissionController(
            settings,
            fleet,
            clock=self.clock,
            limits_of=limits_of,
            quotas=Quotas(limits_of, self.clock, own=self.store),
        )
        self.tasks = {}

    def request(
        self,
        name="x",
        size=1,
        *,
        tenant="t",
        priority=Priority.STANDARD,
        tokens=10,
        seconds=600.0,
    ):
        return AdmissionRequest(
            context=RequestContext(tenant=tenant, priority=priority),
            stream=SlotStream(name, size),
            routing=ROUTING,
            prompt_tokens=tokens,
            output_tokens=0,
            deadline=self.clock.now + seconds,
        )

    async def enter(self, name="x", size=1, **request):
        """Return the request once it is placed."""
        entering = self.request(name, size, **request)
        await self.controller.enter(entering)
        return entering

    async def resume(self, request, name):
        request.stream.name = name
        await self.controller.resume(request)

    async def come(self, name, size=1, **request):
        """Enter in a new task, and let it run until it waits."""
        self.tasks[name] = asyncio.create_task(self.enter(name, size, **request))
        await loop_turns()
        return self.tasks[name]

    async def go(self, request, generated=0):
        self.fleet.release(request.stream)
        self.controller.release(request, generated_tokens=generated)
        await loop_turns()

    async def passes(self, seconds):
        self.clock.now += seconds
        self.controller.wake()
        await loop_turns()

    async def warm(self, residence=2.0, tokens=10):
        """Finish one request, so that waits can be predicted."""
        request = await self.enter("warm", tokens=tokens)
        self.clock.now += residence
        await self.go(request)
        self.fleet.placed.clear()
        self.fleet.tries.clear()


@pytest.fixture
async def world():
    """Create worlds, and check afterwards that they are empty."""
    worlds = []

    def make(capacity=1, *, ready=True, limits_of=None, **settings):
        fleet = SlotDispatcher(capacity, ready=ready)
        worlds.append(World(fleet, limits_of, **settings))
        return worlds[-1]

    yield make
    for each in worlds:
        await each.controller.stop()
        for task in each.tasks.values():
            with suppress(Exception, asyncio.CancelledError):
                await task
        assert not each.controller.queue_length
        assert not each.controller.armed
        assert not each.fleet.listeners
    if left := asyncio.all_tasks() - {asyncio.current_task()}:
        _, unfinished = await asyncio.wait(left, timeout=PATIENCE)
        assert not unfinished


def refused(reason):
    return REGISTRY.get_sample_value("moe_admission_refusals_total", {"reason": reason}) or 0.0


def run_to_end(coroutine):
    """Run a coroutine that must not wait for anything."""
    with pytest.raises(StopIteration) as caught:
        coroutine.send(None)
    return caught.value.value


async def test_with_room_and_no_queue_nothing_waits_and_nothing_is_started(world):
    w = world()
    before = asyncio.all_tasks()
    request = run_to_end(w.enter("x"))
    assert w.fleet.placed == ["x"]
    assert asyncio.all_tasks() == before
    assert not w.controller.armed
    await w.go(request)


async def test_requests_go_when_there_is_room(world):
    w = world(capacity=2)
    first, second = await w.enter("1"), await w.enter("2")
    third = await w.come("3")
    assert not third.done()
    w.clock.now += 3.0
    await w.go(first)
    assert w.fleet.placed == ["1", "2", "3"]
    await w.go(second)
    await w.go(third.result())
    assert w.controller.outstanding_tokens == 0


async def test_no_request_overtakes_a_head_that_does_not_fit(world):
    w = world(capacity=4)
    running = [await w.enter(str(n)) for n in range(3)]
    await w.come("large", 4)
    small = await w.come("small")  # it would fit
    assert not small.done()
    for request in running:
        await w.go(request)
    assert w.fleet.placed == ["0", "1", "2", "large"]


async def test_a_better_priority_passes_a_head_that_does_not_fit(world):
    w = world(capacity=4)
    await w.enter("1", 3)
    await w.come("large", 4, priority=Priority.BATCH)
    await w.come("small", priority=Priority.INTERACTIVE)
    assert w.fleet.placed == ["1", "small"]


async def test_changes_of_the_fleet_are_tried_once_however_many(world):
    w = world()
    running = await w.enter("1")
    await w.come("2")
    w.fleet.tries.clear()
    for _ in range(100):
        w.controller.wake()
    await loop_turns()
    assert w.fleet.tries == ["2"]
    await w.go(running)


async def test_without_anything_happening_the_head_is_tried_again(world):
    w = world(recheck_interval=0.01)
    await w.enter("1")
    await w.come("2")
    w.fleet.capacity = 2  # without a notification
    async with asyncio.timeout(PATIENCE):
        await w.tasks["2"]


async def test_a_deadline_ends_the_wait(world):
    w = world()
    running = await w.enter("1")
    task = await w.come("2", seconds=5)
    other = await w.come("3", seconds=50)
    await w.passes(4.9)
    assert not task.done()
    await w.passes(0.2)
    with pytest.raises(DeadlineExceeded, match="no room"):
        await task
    assert not other.done()
    await w.go(running)
    assert w.fleet.placed == ["1", "3"]


async def test_a_deadline_ends_the_wait_without_anything_happening(world):
    w = world()
    await w.enter("1")
    task = asyncio.create_task(w.enter("2", seconds=0.02))
    await asyncio.sleep(0)
    w.clock.now += 1.0  # the controller's timer is the loop's and fires after 0.02 s
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(DeadlineExceeded):
            await task


async def test_what_a_placement_raises_ends_its_request_alone(world):
    w = world()
    running = await w.enter("1")

    w.fleet.refuse["bad"] = InvalidRequest("too long")
    bad = await w.come("bad")
    good = await w.come("2")
    await w.go(running)
    with pytest.raises(InvalidRequest):
        await bad
    assert good.done()
    assert w.fleet.placed == ["1", "2"]


async def test_a_placement_that_raises_at_once(world):
    w = world()
    w.fleet.refuse["x"] = InvalidRequest("too long")
    with pytest.raises(InvalidRequest):
        await w.enter("x")


async def test_cancelled_while_it_waits(world):
    w = world()
    running = await w.enter("1")
    task = await w.come("2")
    await w.come("3")
    task.cancel()
    await w.go(running)
    assert task.cancelled()
    assert w.fleet.placed == ["1", "3"]


async def test_cancelled_when_it_had_just_been_placed(world):
    w = world()
    running = await w.enter("1")
    task = await w.come("2")
    w.fleet.release(running.stream)
    w.controller.release(running, generated_tokens=0)
    await asyncio.sleep(0)  # the queue is pumped; the task has not run yet
    assert w.fleet.placed == ["1", "2"]
    assert not task.done()
    task.cancel()
    await loop_turns()
    assert task.cancelled()
    assert w.fleet.inside == 0  # it is removed from its rank
    assert w.controller.outstanding_tokens == 0


async def test_release_is_safe_twice(world):
    w = world()
    request = await w.enter()
    await w.go(request)
    w.controller.release(request, generated_tokens=0)
    assert w.controller.outstanding_tokens == 0


# -- early rejection ----------------------------------------------------------------------


async def test_a_wait_past_the_deadline_is_refused_at_once(world):
    w = world()
    await w.warm(residence=2.0)
    await w.enter("1")
    before = refused("predicted_wait")
    await w.come("2", seconds=2.1)  # 2 s: one turn of the fleet
    with pytest.raises(Overloaded) as caught:
        run_to_end(w.enter("3", seconds=2.5))  # behind 2: 4 s
    assert caught.value.retry_after == pytest.approx(1.5, rel=0.1)
    assert refused("predicted_wait") == before + 1
    await w.come("4", seconds=4.1)
    assert not w.tasks["4"].done()


@pytest.mark.parametrize(
    ("priority", "waits"),
    [(Priority.INTERACTIVE, False), (Priority.STANDARD, False), (Priority.BATCH, True)],
)
async def test_max_wait_is_not_for_batch(world, priority, waits):
    w = world(max_wait=1.0)
    await w.warm(residence=2.0)
    await w.enter("1")
    task = await w.come("2", priority=priority)
    assert task.done() is not waits
    if not waits:
        with pytest.raises(Overloaded):
            await task


async def test_without_knowledge_nothing_is_refused_but_for_the_bound(world):
    w = world(queue_requests=2, max_wait=0.001)
    await w.enter("1")
    for name in "23":
        await w.come(name, tenant=name)
    before = refused("queue_full")
    with pytest.raises(Overloaded) as caught:
        run_to_end(w.enter("4", tenant="4"))
    assert caught.value.retry_after == 1.0
    assert refused("queue_full") == before + 1
    assert w.fleet.tries.count("4") == 0  # rejected before any work


async def test_check_refuses_what_enter_would(world):
    w = world(queue_requests=1)
    context = RequestContext(tenant="t")
    w.controller.check(context)
    await w.enter("1")
    w.controller.check(context)  # the queue is empty: it may try
    await w.come("2")
    with pytest.raises(Overloaded, match="1 requests are already queued"):
        w.controller.check(context)


async def test_check_refuses_a_long_wait(world):
    w = world(max_wait=1.0)
    await w.warm(residence=20.0)
    await w.enter("1")
    await w.come("2", priority=Priority.BATCH)
    with pytest.raises(Overloaded, match="the predicted wait"):
        w.controller.check(RequestContext())
    w.controller.check(RequestContext(priority=Priority.BATCH))


# -- parking ------------------------------------------------------------------------------


async def test_without_a_ready_group_requests_are_parked(world):
    w = world()
    await w.warm(residence=100.0)
    w.fleet.ready = False
    task = await w.come("1", seconds=5)  # no prediction, no rejection
    w.clock.now += 3.0
    w.fleet.ready = True
    w.controller.wake()
    await loop_turns()
    request = task.result()
    record = request.context.record
    assert (record.parked, record.waited) == (True, pytest.approx(3.0))


async def test_parked_until_the_deadline(world):
    w = world(ready=False)
    ask = w.request("1", seconds=5)
    task = asyncio.create_task(w.controller.enter(ask))
    await loop_turns()
    await w.passes(6)
    with pytest.raises(DeadlineExceeded, match="no group is ready"):
        await task
    assert ask.context.record.parked
    assert ask.context.record.waited == pytest.approx(6)


async def test_the_queue_bound_holds_for_parked_requests(world):
    w = world(ready=False, queue_requests=1)
    await w.come("1")
    with pytest.raises(Overloaded):
        run_to_end(w.enter("2"))


async def test_a_request_that_waits_for_room_is_not_parked(world):
    w = world()
    running = await w.enter("1")
    task = await w.come("2")
    w.clock.now += 2.0
    await w.go(running)
    record = task.result().context.record
    assert (record.parked, record.waited) == (False, pytest.approx(2.0))


async def test_a_lost_group_parks_queued_requests(world):
    w = world()
    await w.enter("1")
    task = await w.come("2")
    w.fleet.ready = False
    await w.passes(1.0)
    w.fleet.ready, w.fleet.inside = True, 0
    await w.passes(1.0)
    assert task.result().context.record.parked


# -- resumption ---------------------------------------------------------------------------


async def test_a_resumed_request_goes_before_all_and_is_never_refused(world):
    w = world(queue_requests=1)
    first, second = await w.enter("1"), None
    await w.come("urgent", priority=Priority.INTERACTIVE)
    w.fleet.ready = False  # its group is lost
    w.fleet.inside -= 1
    w.tasks["again"] = asyncio.create_task(w.resume(first, "again"))
    await loop_turns()
    assert w.controller.outstanding_tokens == 0
    w.fleet.ready = True
    await w.passes(1.0)
    assert w.fleet.placed == ["1", "again"]
    assert w.tasks["again"].done()
    await w.go(first)
    second = w.tasks["urgent"].result()
    assert w.fleet.placed == ["1", "again", "urgent"]
    await w.go(second)


async def test_a_resumed_request_with_room_waits_for_nothing(world):
    w = world(capacity=2)
    request = await w.enter("1")
    w.fleet.inside -= 1
    run_to_end(w.resume(request, "again"))
    assert w.controller.outstanding_tokens == 10


async def test_a_resumed_request_fails_at_its_deadline(world):
    w = world()
    request = await w.enter("1", seconds=5)
    w.fleet.ready = False
    task = w.tasks["again"] = asyncio.create_task(w.resume(request, "again"))
    await loop_turns()
    await w.passes(6)
    with pytest.raises(DeadlineExceeded):
        await task
    w.controller.release(request, generated_tokens=3)


async def test_waits_of_a_request_add_up(world):
    w = world()
    running = await w.enter("1")
    task = await w.come("2")
    w.clock.now += 2.0
    await w.go(running)
    request = task.result()
    w.fleet.ready = False
    w.fleet.inside -= 1
    again = w.tasks["again"] = asyncio.create_task(w.resume(request, "again"))
    await loop_turns()
    w.clock.now += 3.0
    w.fleet.ready = True
    w.controller.wake()
    await again
    assert request.context.record.waited == pytest.approx(5.0)
    assert request.context.record.parked


# -- shutdown -----------------------------------------------------------------------------


async def test_close_fails_queued_requests_and_refuses_new_ones(world):
    w = world()
    running = await w.enter("1")
    waiting = await w.come("2")
    w.controller.close()
    w.controller.close()
    with pytest.raises(NotReady, match="shutting down"):
        await waiting
    with pytest.raises(NotReady):
        run_to_end(w.enter("3"))
    with pytest.raises(NotReady):
        w.controller.check(RequestContext())
    with pytest.raises(NotReady):
        run_to_end(w.resume(running, "again"))
    w.controller.release(running, generated_tokens=1)
    assert w.fleet.placed == ["1"]


# -- quotas -------------------------------------------------------------------------------


async def test_what_was_refused_for_the_queue_costs_no_tokens(world):
    limits = TenantLimits(tokens_per_minute=100)
    w = world(limits_of=lambda _: limits, queue_requests=1)
    first = await w.enter("1", tokens=90)
    await w.come("2", tokens=1)
    with pytest.raises(Overloaded, match="requests are already queued"):
        await w.enter("3", tokens=5)
    await loop_turns()
    assert (await w.store.tokens("t")).used == 91
    await w.go(first, generated=7)
    assert (await w.store.tokens("t")).used == 98


async def test_cancelled_in_the_queue_gives_the_quota_back(world):
    limits = TenantLimits(concurrent_streams=2, tokens_per_minute=100)
    w = world(limits_of=lambda _: limits)
    await w.enter("1")
    task = await w.come("2")
    with pytest.raises(Overloaded, match="concurrent requests"):
        await w.enter("3")
    task.cancel()
    await loop_turns()
    await w.come("4")
    assert not w.tasks["4"].done()
    assert (await w.store.tokens("t")).used == 20


@pytest.mark.parametrize("ready", [True, False], ids=["with room", "parked"])
async def test_a_request_that_is_ended_while_its_quota_is_checked(world, monkeypatch, ready):
    w = world(limits_of=lambda _: TenantLimits(concurrent_streams=1), ready=ready)
    open_stream, checked = w.store.open_stream, asyncio.Event()

    async def slow(*args):
        await checked.wait()
        return await open_stream(*args)

    monkeypatch.setattr(w.store, "open_stream", slow)
    request = w.request()
    entering = asyncio.create_task(w.controller.enter(request))
    await loop_turns()
    request.ended = CancelledByOperator("by a test")
    checked.set()
    with pytest.raises(CancelledByOperator, match="by a test"):
        await entering
    await loop_turns()
    assert (w.fleet.placed, w.controller.queue_length) == ([], 0)
    assert await open_stream("t", "another", 1, 60.0)  # its share was given back


async def test_a_request_that_is_ended_between_two_ranks(world):
    w = world(ready=False)
    request = w.request()
    request.ended = CancelledByOperator("by a test")
    with pytest.raises(CancelledByOperator, match="by a test"):
        await w.controller.resume(request)
    assert w.controller.queue_length == 0


# -- metrics ------------------------------------------------------------------------------


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_predictions_are_compared_with_what_was_seen(world):
    w = world()
    await w.warm(residence=2.0)
    before = value("moe_admission_wait_error_seconds_count")
    near = value("moe_admission_wait_error_seconds_bucket", le="1.0")
    far = value("moe_admission_wait_error_seconds_bucket", le="0.3")
    running = await w.enter("1")
    await w.come("2")
    assert value("moe_admission_queue_requests", priority="standard") == 1
    assert value("moe_admission_queue_tokens") == 10
    w.clock.now += 2.5
    await w.go(running)
    assert value("moe_admission_wait_error_seconds_count") == before + 1
    # Predicted 2 s, seen 2.5 s.
    assert value("moe_admission_wait_error_seconds_bucket", le="1.0") == near + 1
    assert value("moe_admission_wait_error_seconds_bucket", le="0.3") == far
    assert value("moe_admission_queue_requests", priority="standard") == 0
    assert value("moe_admission_queue_tokens") == 0


# -- invariants ---------------------------------------------------------------------------


class Life:
    """Runs a history on a world, and checks the invariants after every step."""

    def __init__(self):
        self.w = World(SlotDispatcher(capacity=3), queue_requests=10, ageing=5.0)
        self.running = {}  # name: request
        self.waiting = {}  # name: task
        self.numbers = count()

    def one(self, group, index):
        return sorted(group)[index % len(group)] if group else None

    async def come(self, tenant, priority, size, seconds):
        name = str(next(self.numbers))
        ask = {"tenant": tenant, "priority": priority, "tokens": size * 10, "seconds": seconds}
        self.waiting[name] = await self.w.come(name, size, **ask)

    async def end(self, index):
        if name := self.one(self.running, index):
            await self.w.go(self.running.pop(name))

    async def lose(self, index):
        if name := self.one(self.running, index):
            request = self.running.pop(name)
            self.w.fleet.release(request.stream)
            self.waiting[name] = asyncio.create_task(self.resume(request))

    async def resume(self, request):
        try:
            await self.w.controller.resume(request)
        except BaseException:
            self.w.controller.release(request, generated_tokens=0)
            raise
        return request

    async def cancel(self, index):
        if name := self.one(self.waiting, index):
            self.waiting[name].cancel()

    async def after(self, seconds):
        await self.w.passes(seconds)

    async def group(self, ready):
        self.w.fleet.ready = ready
        await self.w.passes(0)

    async def pump(self):
        await loop_turns()
        for name, task in list(self.waiting.items()):
            if not task.done():
                continue
            del self.waiting[name]
            if task.cancelled():
                continue
            if task.exception() is None:
                self.running[name] = task.result()
            else:
                assert isinstance(task.exception(), Overloaded | DeadlineExceeded)
        sizes = sum(request.stream.size for request in self.running.values())
        assert sizes == self.w.fleet.inside <= self.w.fleet.capacity
        assert self.w.controller.queue_length == len(self.waiting)


moves = st.one_of(
    st.tuples(
        st.just(Life.come),
        st.sampled_from("abc"),
        st.sampled_from(Priority),
        st.integers(1, 3),
        st.floats(0.5, 50),
    ),
    st.tuples(st.sampled_from([Life.end, Life.lose, Life.cancel]), st.integers(0, 20)),
    st.tuples(st.just(Life.after), st.floats(0, 20)),
    st.tuples(st.just(Life.group), st.booleans()),
)


@given(st.lists(moves, max_size=60))
def test_each_request_ends_exactly_once_and_nothing_is_left(history):
    asyncio.run(live(history))


async def live(history):
    life = Life()
    for move, *arguments in history:
        await move(life, *arguments)
        await life.pump()
    await life.group(ready=True)
    await life.pump()
    while life.running:
        await life.end(0)
        await life.pump()
    assert not life.waiting  # run until the queue is empty
    controller = life.w.controller
    assert controller.outstanding_tokens == 0
    await controller.stop()
    assert not controller.armed


# -- batches ----------------------------------------------------------------------------


class GivingWay:
    """Preemptible work on the slots."""

    def __init__(self, fleet, work):
        self.fleet = fleet
        self.work = work
        self.arrivals = 0

    def arrived(self, rank):
        del rank
        self.arrivals += 1

    def make_room(self):
        if not self.work:
            return False
        self.fleet.release(self.work.pop())
        return True


def line(w, name, size=1):
    """Return a batch line's request."""
    request = w.request(name, size, priority=Priority.BATCH)
    request.context = replace(request.context, yielding=object())
    assert w.controller.place_in_gap(request) is not None
    return request


async def test_a_line_is_placed_only_if_no_request_waits(world):
    w = world(capacity=2)
    request = line(w, "line")
    await w.come("large", size=2)
    assert w.controller.place_in_gap(w.request("another")) is None
    await w.go(request)
    assert w.fleet.placed == ["line", "large"]
    await w.go(w.tasks["large"].result())


async def test_without_room_a_line_is_not_queued(world):
    w = world(capacity=1)
    request = line(w, "line")
    assert w.controller.place_in_gap(w.request("another")) is None
    assert not w.controller.queue_length
    await w.go(request)


async def test_a_line_counts_in_neither_quotas_nor_predictions(world):
    limits = TenantLimits(requests_per_minute=1, tokens_per_minute=10)
    w = world(capacity=4, limits_of=lambda _: limits)
    lines = [line(w, str(number)) for number in range(3)]
    assert w.controller.outstanding_tokens == 0
    request = await w.enter("x", tokens=5)
    for each in (*lines, request):
        await w.go(each)


async def test_a_request_without_room_takes_that_of_a_line_at_once(world):
    w = world(capacity=1)
    given = line(w, "line")
    w.controller.bystander = GivingWay(w.fleet, [given.stream])
    request = run_to_end(w.enter("x"))
    assert w.fleet.placed == ["line", "x"]
    assert w.controller.bystander.arrivals == 1
    await w.go(request)


async def test_a_request_is_queued_if_nothing_gives_way(world):
    w = world(capacity=1)
    first = await w.enter("first")
    w.controller.bystander = GivingWay(w.fleet, [])
    await w.come("second")
    assert w.controller.queue_length == 1
    await w.go(first)
    assert w.controller.bystander.arrivals == 1
    await w.go(w.tasks["second"].result())


async def test_a_line_is_refused_while_the_router_shuts_down(world):
    w = world()
    w.controller.close()
    with pytest.raises(NotReady):
        w.controller.place_in_gap(w.request())

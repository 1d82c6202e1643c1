"""A minute of fivefold overload in virtual time: waits, predictions, fairness, bounds."""

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import pytest

from serving.admission.api import AdmissionRequest
from serving.admission.controller import AdmissionController
from serving.admission.quotas import TenantLimits
from serving.errors import Overloaded
from serving.request_context import Priority, RequestContext
from serving.settings import AdmissionSettings
from tests.support.clock import ManualClock
from tests.support.dispatching import ROUTING, SlotDispatcher, SlotStream

SLOTS = 16
PROMPT, LONGEST = 50, 350
TOKEN_SECONDS = 0.01
CAPACITY = SLOTS / (LONGEST / 2 * TOKEN_SECONDS)
"""Requests per second that the slots serve, at the mean number of generated tokens."""
MINUTE = 60.0


@dataclass
class Simulation:
    """Slots, arrivals, and a clock that jumps from one event to the next."""

    settings: AdmissionSettings
    weights: dict = field(default_factory=dict)
    seed: int = 1

    def __post_init__(self):
        self.random = random.Random(self.seed)
        self.clock = ManualClock(0.0)
        self.events = []
        self.numbers = count()
        self.fleet = SlotDispatcher(SLOTS)
        self.served = Counter()
        self.waits = defaultdict(list)
        self.errors = []
        self.refused = []
        self.tasks = set()
        self.longest = 0

    def at(self, seconds, what):
        heappush(self.events, (seconds, next(self.numbers), what))

    def arrive(self, tenant, priority, rate, until, deadline=600.0):
        """Poisson arrivals of one tenant."""
        now = 0.0
        while (now := now + self.random.expovariate(rate)) < until:
            self.at(now, lambda: self.start(tenant, priority, deadline))

    def start(self, tenant, priority, deadline):
        task = asyncio.ensure_future(self.request(tenant, priority, deadline))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def request(self, tenant, priority, deadline):
        generated = self.random.randint(1, LONGEST)
        began = self.clock.now
        request = AdmissionRequest(
            context=RequestContext(tenant, priority),
            stream=SlotStream(),
            routing=ROUTING,
            prompt_tokens=PROMPT,
            output_tokens=LONGEST,
            deadline=began + deadline,
        )
        try:
            await self.controller.enter(request)
        except Overloaded as error:
            self.refused.append((priority, self.clock.now - began, error.retry_after))
            return
        wait = self.clock.now - began
        self.waits[priority].append(wait)
        if (predicted := request.predicted) is not None:
            self.errors.append((wait - predicted, predicted))
        # Exclude the first seconds, when the queue fills, and the last, when it empties.
        if 10 < self.clock.now < MINUTE:
            self.served[tenant] += PROMPT + LONGEST
        done = asyncio.Event()
        self.at(self.clock.now + generated * TOKEN_SECONDS, done.set)
        await done.wait()
        self.fleet.release(request.stream)
        self.controller.release(request, generated_tokens=generated)

    async def run(self):
        self.controller = AdmissionController(
            self.settings,
            self.fleet,
            clock=self.clock,
            limits_of=lambda tenant: TenantLimits(weight=self.weights.get(tenant, 1.0)),
        )
        while self.events:
            self.clock.now, _, what = heappop(self.events)
            what()
            for _ in range(6):
                await asyncio.sleep(0)
            assert self.fleet.inside <= SLOTS
            queued = self.controller.queue_length
            self.longest = max(self.longest, queued)
            # No slot stays free while a request is queued.
            assert not queued or self.fleet.inside >= self.fleet.capacity
        await self.controller.stop()
        assert not self.tasks
        assert self.fleet.inside == 0
        return self


def at_share(values, share):
    return sorted(values)[int(share * (len(values) - 1))]


def simulate(arrivals, *, weights=None, events=(), **settings):
    simulation = Simulation(AdmissionSettings(**settings), weights or {})
    for arrival in arrivals:
        simulation.arrive(*arrival)
    for seconds, what in events:
        simulation.at(seconds, lambda what=what: what(simulation))
    return asyncio.run(simulation.run())


FIVE_TIMES = [
    ("eager", Priority.STANDARD, 4 * CAPACITY, MINUTE),
    ("modest", Priority.STANDARD, 1 * CAPACITY, MINUTE),
]


@pytest.fixture(scope="module")
def overload():
    return simulate(FIVE_TIMES, max_wait=4.0)


def test_waits_stay_near_what_was_allowed(overload):
    waits = overload.waits[Priority.STANDARD]
    assert len(waits) > 0.9 * CAPACITY * MINUTE
    assert at_share(waits, 0.99) < 2 * 4.0


def test_predictions_are_near_what_is_seen(overload):
    errors = [error for error, _ in overload.errors]
    predicted = [value for _, value in overload.errors]
    mean = sum(predicted) / len(predicted)
    assert abs(sum(errors) / len(errors)) < 0.25 * mean
    assert at_share([abs(error) for error in errors], 0.9) < mean


def test_most_are_refused_with_a_time_to_retry(overload):
    share = len(overload.refused) / (len(overload.refused) + len(overload.waits[1]))
    assert 0.7 < share < 0.85
    assert max(waited for _, waited, _ in overload.refused) == 0  # at once
    assert all(0 < retry_after < 60 for _, _, retry_after in overload.refused)


def test_equal_tenants_get_equal_shares(overload):
    eager, modest = overload.served["eager"], overload.served["modest"]
    assert abs(eager - modest) < 0.1 * (eager + modest) / 2


def test_weights_are_shares():
    done = simulate(
        [(name, Priority.STANDARD, 2.5 * CAPACITY, MINUTE) for name in ("one", "three")],
        weights={"three": 3.0},
        max_wait=4.0,
    )
    assert done.served["three"] / done.served["one"] == pytest.approx(3, rel=0.1)


def test_the_queue_is_bounded_where_nothing_else_is():
    done = simulate(FIVE_TIMES, max_wait=None, queue_requests=40)
    assert done.longest <= 40
    assert len(done.waits[Priority.STANDARD]) > 0.9 * CAPACITY * MINUTE


def test_interactive_requests_wait_little_behind_a_flood_of_batch():
    done = simulate(
        [
            ("batch", Priority.BATCH, 5 * CAPACITY, MINUTE),
            ("people", Priority.INTERACTIVE, 0.3 * CAPACITY, MINUTE),
        ],
        queue_requests=200,
        ageing=30.0,
    )
    people, batch = done.waits[Priority.INTERACTIVE], done.waits[Priority.BATCH]
    assert at_share(people, 0.95) < 1.0
    assert not [refusal for refusal in done.refused if refusal[0] is Priority.INTERACTIVE]
    # Batch requests do not starve: they get the remaining capacity.
    assert len(batch) > 0.6 * CAPACITY * MINUTE


def test_half_the_fleet_lost_and_back():
    def slots(number):
        def change(simulation):
            simulation.fleet.capacity = number
            simulation.controller.wake()

        return change

    done = simulate(
        [("t", Priority.STANDARD, 0.9 * CAPACITY, MINUTE)],
        events=[(20.0, slots(SLOTS // 2)), (40.0, slots(SLOTS))],
        max_wait=5.0,
    )
    assert at_share(done.waits[Priority.STANDARD], 0.99) < 2 * 5.0
    assert done.refused

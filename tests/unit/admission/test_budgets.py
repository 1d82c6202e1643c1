"""Budgets on the request path: waits, refusals, warnings, and an unavailable database."""

import asyncio
import threading
from types import SimpleNamespace

import pytest

from serving.admission import budgets as module
from serving.admission.budgets import REST_SECONDS, Budgets
from serving.errors import BudgetExceeded, NotReady
from serving.ledger.budget import UNIT, Budget, Level, Period, Scope, judge
from serving.ledger.records import RecordIds
from serving.request_context import RequestContext
from serving.telemetry.metrics import REGISTRY
from tests.support.clock import ManualClock
from tests.support.ledgers import DAY
from tests.support.waiting import PATIENCE, eventually

HARD = Budget(Scope.TENANT, "t", Period.DAY, hard=10 * UNIT)
SOFT = Budget(Scope.KEY, "k", Period.MONTH, soft=2 * UNIT)


class Store:
    """A store with one level in memory, which can fail or hang like a database."""

    def __init__(self):
        self.level = Level()
        self.batches = []
        self.settled = []
        self.renewals = 0
        self.error = None
        self.calls = 0
        self.go = threading.Event()
        self.go.set()

    def update(self, claims, settlements, *, renew, now):
        self.calls += 1
        assert self.go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        self.batches.append(len(claims))
        self.settled += settlements
        self.renewals += renew
        for each in settlements:
            if each.amount is not None:
                self.level.add("k", day=each.amount, month=each.amount)
        return [judge(each, self.level) for each in claims]


class Prices:
    """A token costs one unit of the currency."""

    def highest(self, prompt, output, now):
        return (prompt + output) * UNIT

    def of(self, prompt, cached, output, now, *, batch):
        return (prompt - cached + output) * UNIT // (2 if batch else 1)


@pytest.fixture
async def world():
    made = SimpleNamespace(store=Store(), clock=ManualClock(DAY), given=[HARD], all=[])

    def make(**options):
        options = {"timeout": PATIENCE, "currency": "USD", **options}
        budgets = Budgets(
            lambda *_: made.given,
            made.store,
            made.clock,
            record_ids=RecordIds(),
            **options,
        )
        made.all.append(budgets)
        return budgets

    made.make = make
    yield made
    made.store.error = None
    made.store.go.set()
    for each in made.all:
        await each.close()


def context():
    return RequestContext("t", key_id="k")


async def reserve(budgets, prompt=1, output=1, given=None):
    given = given or context()
    return await budgets.reserve(given, budgets.of(given), Prices(), prompt, output)


async def one_in_the_store(world, budgets):
    """Return the task of a request whose transaction waits for ``go``."""
    world.store.go.clear()
    task = asyncio.create_task(reserve(budgets))
    await eventually(lambda: world.store.calls)
    return [task]


def failures():
    return REGISTRY.get_sample_value("moe_budget_store_failures_total")


async def test_requests_that_wait_together_share_a_transaction(world):
    budgets = world.make()
    tasks = await one_in_the_store(world, budgets)
    tasks += [asyncio.create_task(reserve(budgets)) for _ in range(4)]
    await eventually(lambda: len(budgets._waiting) == 4)
    world.store.go.set()
    await asyncio.gather(*tasks)
    assert world.store.batches == [1, 4]


async def test_settlements_replace_reservations_once(world):
    budgets = world.make()
    one, two = [await reserve(budgets, 2, 1) for _ in range(2)]
    one.settle(prompt=2, cached=1, output=1)
    one.settle(prompt=2, cached=1, output=1)
    one.give_back()
    two.give_back()
    await eventually(lambda: len(world.store.settled) == 2)
    first, second = world.store.settled
    assert (first.number, first.amount) == (one.claim.number, 2 * UNIT)
    assert (second.number, second.amount) == (two.claim.number, None)
    assert first.record_id != second.record_id


async def test_prompts_of_a_request_have_its_record_and_different_numbers(world):
    budgets, given = world.make(), context()
    one, two = [await reserve(budgets, given=given) for _ in range(2)]
    assert one.claim.record_id == two.claim.record_id == given.record.record_id
    assert one.claim.number != two.claim.number


async def test_a_used_up_budget_refuses_from_memory_until_it_renews_or_is_changed(world):
    budgets = world.make()
    (await reserve(budgets)).settle(prompt=10, cached=0, output=0)
    with pytest.raises(
        BudgetExceeded, match=r"day's budget of tenant t, 10 USD, is used up"
    ) as caught:
        await reserve(budgets)
    assert caught.value.renews_at == DAY + 86_400
    assert caught.value.retry_after == 86_400
    transactions = len(world.store.batches)
    with pytest.raises(BudgetExceeded):
        budgets.check(context())
    assert len(world.store.batches) == transactions
    world.given = [Budget(Scope.TENANT, "t", Period.DAY, hard=20 * UNIT)]
    budgets.check(context())
    world.given = [HARD]
    world.clock.now += 86_400
    budgets.check(context())


async def test_reservations_that_hold_the_rest_are_worth_another_try(world):
    budgets = world.make()
    held = await reserve(budgets, 10, 10)
    with pytest.raises(BudgetExceeded, match="requests in flight may use the rest") as caught:
        await reserve(budgets)
    assert (caught.value.retry_after, caught.value.renews_at) == (1.0, DAY + 86_400)
    budgets.check(context())  # it is not remembered
    held.give_back()


async def test_a_soft_limit_is_told_to_the_client_and_logged_once_in_a_period(world, monkeypatch):
    logged = []
    monkeypatch.setattr(module.log, "warning", lambda *_, **fields: logged.append(fields))
    world.given = [SOFT]
    budgets, given = world.make(), context()
    (await reserve(budgets, given=given)).settle(prompt=2, cached=0, output=0)
    assert given.record.budget_warning is None
    for _ in range(2):
        await reserve(budgets, given=given)
    assert given.record.budget_warning == (
        "key k has spent 2 USD this month, above 2 USD; renews 2025-03-01T00:00:00Z"
    )
    assert [(each["name"], each["spent"]) for each in logged] == [("k", "2")]
    world.clock.now += 86_400
    await reserve(budgets)
    assert len(logged) == 2


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
async def test_while_the_database_is_away_open_admits_and_settles_afterwards(world, trouble):
    budgets = world.make(timeout=0.01 if trouble == "hangs" else PATIENCE)
    before = failures()
    if trouble == "hangs":
        world.store.go.clear()
    else:
        world.store.error = OSError("gone")
    reservation = await reserve(budgets)
    assert failures() > before
    # It is not queried again for a while.
    again = await reserve(budgets)
    assert world.store.batches == []
    reservation.settle(prompt=1, cached=0, output=0)
    again.settle(prompt=1, cached=0, output=0)
    calls = world.store.calls
    for _ in range(30):
        await asyncio.to_thread(int)
    assert world.store.calls <= calls + 1  # nor in the background
    world.store.error = None
    world.store.go.set()
    world.clock.now += REST_SECONDS
    # The second claim never reached the store.
    await eventually(
        lambda: [each.number for each in world.store.settled] == [reservation.claim.number]
    )


async def test_while_the_database_is_away_closed_refuses(world):
    budgets = world.make(down="closed")
    world.store.error = OSError("gone")
    for _ in range(2):
        with pytest.raises(NotReady, match="budgets cannot be checked"):
            await reserve(budgets)


async def test_a_request_that_gave_up_reserves_nothing(world):
    budgets = world.make()
    tasks = await one_in_the_store(world, budgets)
    tasks.append(asyncio.create_task(reserve(budgets)))
    await eventually(lambda: len(budgets._waiting) == 1)
    for each in tasks:
        each.cancel()
    await asyncio.wait(tasks)
    world.store.go.set()
    # The first claim was already in a transaction, and is released.
    await eventually(lambda: len(world.store.settled) == 2)
    assert world.store.batches[0] == 1
    assert sum(world.store.batches) == 1
    assert not budgets._held


async def test_leases_are_renewed_while_requests_run(world, monkeypatch):
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.001)
    budgets = world.make()
    reservation = await reserve(budgets)
    await eventually(lambda: world.store.renewals > 2)
    reservation.give_back()
    await eventually(lambda: not budgets._settlements)
    await eventually(lambda: budgets._renewal is None)


async def test_the_store_is_reached_before_the_first_request(world):
    world.make().start()
    await eventually(lambda: world.store.calls == 1)
    assert world.store.batches == [0]


async def test_requests_without_a_budget_do_not_reach_the_store(world):
    budgets = world.make()
    world.given = []
    assert budgets.of(context()) == []
    budgets.check(context())
    assert world.store.batches == []


@pytest.mark.parametrize(("yielding", "spent"), [(None, 4), (object(), 2)], ids=["other", "line"])
async def test_a_batchs_line_is_settled_at_its_price(world, yielding, spent):
    budgets = world.make()
    given = RequestContext("t", key_id="k", yielding=yielding)
    reservation = await reserve(budgets, given=given)
    reservation.settle(prompt=2, cached=0, output=2)
    await eventually(lambda: world.store.settled)
    assert [each.amount for each in world.store.settled] == [spent * UNIT]

"""Which keys see which budgets and usage, and the content of the rows."""

import asyncio
from decimal import Decimal

import pytest

from serving.console.spending import FRESH, MAX_ROWS, Spending
from serving.edge.auth.authenticator import Principal
from serving.edge.auth.key_file import Role
from serving.edge.auth.keys import Key, KeyRing
from serving.ledger.budget import UNIT, Budget, Level, Period, Scope
from serving.ledger.report import PeriodCost, Report, Row
from serving.ledger.tariff import Amounts, Tokens
from tests.support.clock import ManualClock

ALICE = Budget(Scope.TENANT, "alice", Period.MONTH, soft=2 * UNIT, hard=4 * UNIT)
SMALL = Budget(Scope.KEY, "small", Period.DAY, hard=UNIT)
BOB = Budget(Scope.TENANT, "bob", Period.DAY, hard=UNIT)
USER, ADMIN = frozenset({Role.USER}), frozenset({Role.ADMIN})


def ring(*budgets):
    key = Key("small", "alice", USER, frozenset())
    return KeyRing({"digest": key}, {}, {(each.scope, each.name): [each] for each in budgets})


class Ledger:
    """A ledger in which alice's key has spent 3 of the currency today."""

    def __init__(self, rows=(), periods=()):
        self.rows, self.periods = rows, periods

    def report(self, query):
        assert query.end - query.start == 86_400
        return Report("EUR", tuple(self.rows), tuple(self.periods))

    def levels(self, tenants, now):
        found = {tenant: Level() for tenant in tenants}
        if "alice" in found:
            found["alice"].add("small", day=3 * UNIT, month=3 * UNIT, held=UNIT // 2)
        return found


async def read(principal, ledger=None, *budgets):
    made = ring(*budgets)
    spending = Spending(ledger or Ledger(), lambda: made, ManualClock())
    try:
        return await spending.today(principal)
    finally:
        spending.close()


async def test_a_user_sees_the_budgets_of_its_tenant_and_key_alone():
    principal = Principal("alice", USER, key_id="small")
    found = await read(principal, None, ALICE, SMALL, BOB)
    assert sorted(found) == ["budgets", "hidden_budgets"]
    assert [(each["tenant"], each["key"]) for each in found["budgets"]] == [
        ("alice", None),
        ("alice", "small"),
    ]
    first = found["budgets"][0]
    assert (first["spent"], first["reserved"], first["soft"], first["hard"]) == (3, 0.5, 2, 4)


async def test_an_admin_sees_all_and_what_a_million_tokens_cost():
    price = Amounts(Decimal(0), Decimal(1), Decimal(2), Decimal(0))
    rows = [
        Row(0, name, "m", None, Tokens(1, 10, 5, output, 0), Decimal(1), price, price, None)
        for name, output in (("small", 10), ("large", 499_990))
    ]
    hours = Decimal(3)
    period = PeriodCost(0, hours, Decimal(1), Decimal(6), Decimal(2), Decimal(4))
    found = await read(Principal("ops", ADMIN), Ledger(rows, [period]), ALICE, SMALL, BOB)
    assert len(found["budgets"]) == 3
    assert [row["tenant"] for row in found["usage"]] == ["large", "small"]
    total = found["total"]
    assert (total["price"], total["cost"], total["cost_per_million"]) == (6, 6, 12)
    assert (total["gpu_hours"], total["busy_hours"]) == (3, 1)


async def test_without_gpu_price_or_tokens_there_is_no_cost_per_token():
    found = await read(Principal("ops", ADMIN))
    assert (found["total"]["cost"], found["total"]["cost_per_million"]) == (None, None)


async def test_rows_are_bounded():
    many = [Budget(Scope.TENANT, f"t{n}", Period.DAY, hard=1) for n in range(MAX_ROWS + 7)]
    found = await read(Principal("ops", ADMIN), None, *many)
    assert (len(found["budgets"]), found["hidden_budgets"]) == (MAX_ROWS, 7)


@pytest.mark.parametrize("roles", [USER, ADMIN])
async def test_without_keys_there_are_no_budgets(roles):
    spending = Spending(Ledger(), None, ManualClock())
    assert (await spending.today(Principal(roles=roles)))["budgets"] == []
    spending.close()


class CountingLedger(Ledger):
    def __init__(self):
        super().__init__()
        self.asked = 0

    def levels(self, tenants, now):
        self.asked += 1
        return super().levels(tenants, now)


async def test_a_key_that_asks_often_is_answered_by_one_query():
    ledger, clock, made = CountingLedger(), ManualClock(), ring(ALICE, SMALL)
    spending = Spending(ledger, lambda: made, clock)
    alice = Principal("alice", USER, key_id="small")
    try:
        answers = await asyncio.gather(*(spending.today(alice) for _ in range(100)))
        assert ledger.asked == 1
        assert all(each is answers[0] for each in answers)
        await spending.today(Principal("alice", USER, key_id="another"))
        assert ledger.asked == 2
        clock.now += FRESH
        await spending.today(alice)
        assert ledger.asked == 3
        assert len(spending._answers) == 1
    finally:
        spending.close()

"""Budgets on real databases, and over both protocols of a router."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import grpc
import grpc.aio
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import func, select

from serving.api.v1 import inference_pb2 as pb
from serving.api.v1 import inference_pb2_grpc
from serving.edge.auth.keys import digest_of
from serving.errors import SettingsError
from serving.ledger.budget import Budget, Claim, Period, Scope, Settlement
from serving.ledger.budget_store import LEASE, BudgetStore
from serving.ledger.database import LedgerDatabase
from serving.ledger.schema import RESERVATIONS, SPENDING
from serving.router.app import Router
from tests.integration.edge.stand import stand_settings, standing
from tests.support.ledgers import DAY, usage
from tests.support.waiting import PATIENCE, eventually

HARD = Budget(Scope.TENANT, "alice", Period.MONTH, hard=100)
USAGE_COST = 20 * 550 + 6 * 135 + 4 * 35
"""Price of ``tests.support.ledgers.usage`` at midnight, in the bundled tariff's discount."""
numbers = count()


@pytest.fixture
def databases(ledger_settings):
    """Connections of two routers to one database."""
    made = [LedgerDatabase(ledger_settings) for _ in range(2)]
    yield made
    for each in made:
        each.close()


def claim(amount=10, record="r", tenant="alice", budgets=(HARD,), key="alice-1"):
    return Claim(record, next(numbers), tenant, key, amount, budgets)


def update(store, *claims, settled=(), renew=False, now=DAY):
    """Return for each claim whether it is reserved."""
    verdicts = store.update(claims, settled, renew=renew, now=now)
    return [each.refused is None for each in verdicts]


def total(database, column):
    with database.connect() as connection:
        return int(connection.scalar(select(func.coalesce(func.sum(column), 0))))


def test_routers_that_race_give_away_a_budget_once(databases):
    """500 claims of 1 by two routers in small transactions, against a budget for 100."""
    stores = [BudgetStore(each) for each in databases]
    stores[0].update([], [], renew=False, now=DAY)

    def ask(store):
        return [
            reserved for _ in range(50) for reserved in update(store, *(claim(1) for _ in range(5)))
        ]

    with ThreadPoolExecutor() as threads:
        answers = [each for found in threads.map(ask, stores) for each in found]
    assert (len(answers), sum(answers)) == (500, 100)
    assert total(databases[0], RESERVATIONS.c.amount) == 100


def test_the_last_claim_may_exceed_the_limit_and_no_other_tenant_is_bound(databases):
    store = BudgetStore(databases[0])
    assert update(store, claim(99), claim(500), claim(1)) == [True, True, False]
    assert update(store, claim(500, tenant="bob", budgets=())) == [True]


def test_a_record_takes_the_place_of_its_reservation_once(databases):
    """Inserted twice, as after a commit whose answer was lost, it is spent once."""
    database = databases[0]
    store = BudgetStore(database)
    update(store, claim(7, record="a"), claim(8, record="a"), claim(9, record="b"))
    for _ in range(2):
        database.insert([usage("a"), usage("c", at=DAY + 86_400)])
    assert total(database, RESERVATIONS.c.amount) == 9
    assert total(database, SPENDING.c.amount) == 2 * USAGE_COST


def test_what_is_spent_counts_in_its_period(databases):
    day = Budget(Scope.KEY, "alice-1", Period.DAY, hard=USAGE_COST + 1)
    store = BudgetStore(databases[0])
    databases[0].migrate()
    databases[0].insert([usage("a"), usage("b", at=DAY - 1), usage("c", key_id="alice-2")])
    (verdict,) = store.update([claim(1, budgets=(day,))], [], renew=False, now=DAY)
    assert verdict.refused is None
    (verdict,) = store.update([claim(1, budgets=(day,))], [], renew=False, now=DAY)
    assert verdict.refused == (day, USAGE_COST, 1)
    month = Budget(Scope.TENANT, "alice", Period.MONTH, hard=3 * USAGE_COST)
    (verdict,) = store.update([claim(1, budgets=(month,))], [], renew=False, now=DAY)
    assert verdict.refused == (month, 3 * USAGE_COST, 1)
    # DAY is the last of its month.
    both = claim(1, budgets=(day, month))
    assert update(store, both, now=DAY + 86_400) == [True]


def test_settlements_change_what_is_held(databases):
    store = BudgetStore(databases[0])
    one, two = claim(50), claim(50)
    assert update(store, one, two, claim(1)) == [True, True, False]
    settled = [Settlement("r", one.number, 30), Settlement("r", two.number, None)]
    assert update(store, claim(69), claim(1), claim(1), settled=settled) == [True, True, False]
    # Once more, and without a reservation.
    settled.append(Settlement("none", 0, 5))
    assert update(store, claim(1), settled=settled) == [False]


def test_reservations_of_a_dead_router_end_with_their_lease(databases):
    alive, dead = (BudgetStore(each) for each in databases)
    assert update(dead, claim(60)) == [True]
    assert update(alive, claim(40)) == [True]
    assert update(alive, claim(1), renew=True, now=DAY + LEASE - 1) == [False]
    assert update(alive, claim(50), renew=True, now=DAY + LEASE) == [True]
    assert total(databases[0], RESERVATIONS.c.amount) == 90  # the others are removed


def test_a_reservation_that_is_committed_after_its_record_ends_with_its_lease(databases):
    store = BudgetStore(databases[0])
    databases[0].migrate()
    databases[0].insert([usage("late")])
    late = claim(100, record="late", budgets=())
    update(store, late)
    settled = [Settlement("late", late.number, 100)]
    assert update(store, claim(1), settled=settled) == [False]
    assert update(store, claim(1), renew=True, now=DAY + LEASE) == [False]  # 46,860 are spent
    assert total(databases[0], RESERVATIONS.c.amount) == 0


def test_an_empty_database_in_place_of_the_old_one_is_migrated(ledger_settings):
    database = LedgerDatabase(ledger_settings)
    store = BudgetStore(database)
    assert update(store, claim(1)) == [True]
    with database.write() as connection:
        for table in ("ledger_reservations", "ledger_spending", "ledger_requests"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("DROP TABLE ledger_capacity")
        connection.exec_driver_sql("DROP TABLE ledger_schema")
    with pytest.raises(Exception, match="ledger_"):
        update(store, claim(1))
    assert update(store, claim(1)) == [True]
    database.close()


# -- a router ------------------------------------------------------------------------------

KEY, OTHER = "moe-key-of-a-budget", "moe-key-without-a-budget"
KEYS = f"""
keys:
  - id: small
    tenant: alice
    hash: "{digest_of(KEY)}"
    budgets: {{day: {{soft: 0.0001, hard: 0.0003}}}}
  - {{id: other, tenant: alice, hash: "{digest_of(OTHER)}"}}
"""
TARIFF = "currency: EUR\nmodels: {pocket-r1: {cached: 0, uncached: 0, output: 10}}"
# 10 tokens for 10 per million: 0.0001.
CHAT = {
    "model": "pocket-r1",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 10,
    "ignore_eos": True,
}


def settings_in(folder, keys=KEYS, tariff=TARIFF, **ledger):
    (folder / "keys.yaml").write_text(keys)
    (folder / "tariff.yaml").write_text(tariff)
    return stand_settings(
        security={"keys_file": str(folder / "keys.yaml")},
        ledger={
            "directory": str(folder / "ledger"),
            "tariff_file": str(folder / "tariff.yaml"),
            "flush_interval": 0.02,
            "budget_timeout": PATIENCE,
            **ledger,
        },
    )


async def test_a_budget_warns_and_then_refuses_over_both_protocols(tmp_path):
    async with (
        standing(settings_in(tmp_path)) as stand,
        httpx.AsyncClient(base_url=stand.router.addresses.rest, timeout=PATIENCE) as rest,
        grpc.aio.insecure_channel(stand.router.addresses.grpc) as channel,
    ):
        spent = stand.router.ledger.database
        paths = ("/v1/chat/completions", "/v1/messages")
        small = {"authorization": f"Bearer {KEY}"}

        async def post(key=KEY, path=paths[0], **more):
            headers = {"authorization": f"Bearer {key}"}
            return await rest.post(path, headers=headers, json=CHAT | more)

        async def recorded(tokens):
            await eventually(lambda: total(spent, SPENDING.c.amount) == tokens * 10_000)

        answer = await post()
        assert (answer.status_code, answer.headers.get("x-budget-warning")) == (200, None)
        await recorded(10)
        answer = await post(stream=True)
        assert answer.headers["x-budget-warning"].startswith(
            "key small has spent 0.0001 EUR this day, above 0.0001 EUR; limit 0.0003 EUR; renews "
        )
        await recorded(20)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        chat = pb.ChatRequest(
            model="pocket-r1", messages=[pb.Message(role=pb.ROLE_USER, content="hi")]
        )
        chat.sampling.max_tokens = 10
        call = stub.Chat(chat, metadata=tuple(small.items()))
        assert (await call).usage.completion_tokens == 10
        trailers = dict(await call.trailing_metadata())
        assert trailers["x-budget-warning"].startswith("key small has spent 0.0002 EUR")
        await recorded(30)

        # First from the database, then from memory, before the body is read.
        for _ in range(2):
            answer = await post()
            error = answer.json()["error"]
            assert (answer.status_code, error["reason"]) == (402, "BUDGET_EXCEEDED")
            assert "key small, 0.0003 EUR, is used up" in error["message"]
            assert error["message"].endswith(error["renews_at"])
            assert error["renews_at"].endswith("T00:00:00Z")
            assert 0 < int(answer.headers["retry-after"]) <= 86_400
        renews_at = error["renews_at"]
        answer = await post(path=paths[1])
        assert (answer.status_code, answer.json()["error"]["type"]) == (402, "billing_error")
        assert answer.json()["error"]["message"] == error["message"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(chat, metadata=tuple(small.items()))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        info = error_details_pb2.ErrorInfo()
        assert rpc_status.from_call(caught.value).details[0].Unpack(info)
        assert (info.reason, info.metadata["renews_at"]) == ("BUDGET_EXCEEDED", renews_at)

        assert (await post(OTHER)).status_code == 200
        assert (await rest.get("/v1/models", headers=small)).status_code == 200
        await eventually(lambda: total(spent, RESERVATIONS.c.amount) == 0)


@pytest.mark.parametrize(
    ("tariff", "ledger", "message"),
    [
        (TARIFF, {"directory": None}, "budgets require a ledger: set ledger.directory"),
        (TARIFF.replace("pocket-r1", "other"), {}, "has none of model pocket-r1"),
    ],
)
async def test_budgets_that_cannot_be_counted_stop_the_start(tmp_path, tariff, ledger, message):
    with pytest.raises(SettingsError, match=message):
        await Router.start(settings_in(tmp_path, tariff=tariff, **ledger))

"""The two views: DeepSeek's day as published, and how costs are shared."""

from decimal import Decimal

import pytest

from serving.ledger.budget import charges, units
from serving.ledger.database import LedgerDatabase
from serving.ledger.query import DAY as DAY_SECONDS
from serving.ledger.query import HOUR, GroupBy, Query
from serving.ledger.report import margin, merged
from serving.ledger.sums import read_report
from serving.ledger.tariff import load_tariff, parse_tariff
from serving.settings import LedgerSettings
from tests.support.ledgers import DAY, capacity, usage

TENANT = frozenset({GroupBy.TENANT})
TARIFF = parse_tariff(
    "currency: EUR\n"
    "models:\n"
    "  m: {cached: 1, uncached: 2, output: 3, windows: [\n"
    '    {from: "12:00", until: "13:00", discount_percent: 50}]}\n',
    "test",
)
MILLION = 10**6


@pytest.fixture
def database(tmp_path):
    made = LedgerDatabase(LedgerSettings(directory=str(tmp_path)))
    made.migrate()
    yield made
    made.close()


def read(database, query, price="2", tariff=TARIFF):
    with database.connect() as connection:
        return read_report(connection, query, tariff, price and Decimal(price))


def test_deepseeks_day_from_records_through_the_code_that_bills_a_tenant(database):
    """DeepSeek's 24 hours to 28 February 2025, 12:00 UTC+8 (open-infra-index, day 6).

    Published: 608B input tokens, of which 342B cached, and 168B output tokens; 226.75 nodes of 8
    H800 on average, 278 at most, at 2 dollars a GPU-hour: 87,072 dollars. At the prices of R1
    without discounts: 562,027 dollars, a cost profit margin of 545 %. The token counts are
    published rounded to billions, so the price of the rounded counts is 0.013 % higher.
    """
    begin = DAY - 8 * HOUR  # 27 February, 16:00 UTC
    requests = 4800
    records = [
        usage(
            f"r-{number}",
            at=begin + number * DAY_SECONDS / requests,
            tenant=f"tenant-{number % 7}",
            prompt_tokens=608 * 10**9 // requests + (number < 608 * 10**9 % requests),
            cached_tokens=342 * 10**9 // requests + (number < 342 * 10**9 % requests),
            output_tokens=168 * 10**9 // requests + (number < 168 * 10**9 % requests),
            rank_us=1_000_000 * (1 + number % 3),
        )
        for number in range(requests)
    ]
    # 24 hours with 278 nodes at most and 226.75 on average; each node is a group of 8 GPUs.
    nodes = [278] * 12 + [175] * 6 + [176] * 6
    assert sum(nodes) == 226.75 * 24
    capacities = [
        capacity(begin + hour * HOUR, f"g{node}", seconds=HOUR, busy=0.75)
        for hour, count in enumerate(nodes)
        for node in range(count)
    ]
    database.insert(records)
    database.insert(capacities)

    tariff = load_tariff(None)
    by_tenant = read(
        database,
        Query(DAY - DAY_SECONDS, DAY + DAY_SECONDS, DAY_SECONDS, TENANT),
        tariff=tariff,
    )
    assert sum(row.tokens.prompt for row in by_tenant.rows) == 608 * 10**9
    assert sum(row.tokens.cached for row in by_tenant.rows) == 342 * 10**9
    assert sum(row.tokens.output for row in by_tenant.rows) == 168 * 10**9

    assert by_tenant.list_price == Decimal(562100)
    assert abs(by_tenant.list_price / 562_027 - 1) < Decimal("0.00014")
    assert by_tenant.cost == Decimal(87072)
    assert int(margin(by_tenant.list_price, by_tenant.cost) * 100) == 545

    # Tenants actually paid less: a third of the day had discounted prices.
    assert by_tenant.price < by_tenant.list_price
    # Every bill is exact, and together they add up to the total.
    assert sum(row.list_price.total for row in merged(by_tenant.rows)) == Decimal(562100)
    assert len(merged(by_tenant.rows)) == 7
    # Three quarters of the GPU time were busy, and are shared completely; the rest is idle.
    assert sum(row.cost for row in by_tenant.rows) == pytest.approx(
        Decimal(65304), abs=Decimal("1e-15")
    )
    assert sum(period.idle for period in by_tenant.periods) == Decimal(21768)


def test_discounts_follow_the_end_of_each_request(database):
    prompt = {"model": "m", "prompt_tokens": MILLION, "cached_tokens": 0, "output_tokens": 0}
    for name, at in (
        ("a", DAY + 12 * HOUR - 0.000_001),
        ("b", DAY + 12 * HOUR),
        ("c", DAY + 13 * HOUR - 0.000_001),
        ("d", DAY + 13 * HOUR),
    ):
        database.insert([usage(name, at=at, **prompt)])
    (row,) = read(database, Query(DAY, DAY + DAY_SECONDS)).rows
    assert (row.list_price.total, row.price.total) == (8, 6)
    hours = read(database, Query(DAY, DAY + DAY_SECONDS, HOUR)).rows
    assert [(row.start - DAY) // HOUR for row in hours] == [11, 12, 13]
    assert [row.price.total for row in hours] == [2, 2, 2]


def test_busy_time_is_shared_by_time_on_ranks_and_idle_is_nobodys(database):
    database.insert([usage("a", tenant="alice", model="m", rank_us=3_000_000)])
    database.insert([usage("b", tenant="bob", model="m", rank_us=1_000_000)])
    database.insert([capacity(seconds=HOUR, gpus=2, busy=0.25)])
    found = read(database, Query(DAY, DAY + DAY_SECONDS, group_by=TENANT), "10")
    assert {row.tenant: row.cost for row in found.rows} == {
        "alice": Decimal("3.75"),
        "bob": Decimal("1.25"),
    }
    (period,) = found.periods
    assert (period.gpu_hours, period.busy_hours) == (2, Decimal("0.5"))
    assert (period.total, period.busy, period.idle) == (20, 5, 15)
    # A filter changes which rows are shown, not their costs.
    only = read(database, Query(DAY, DAY + DAY_SECONDS, group_by=TENANT, tenants=["bob"]), "10")
    assert [row.cost for row in only.rows] == [Decimal("1.25")]


def test_busy_time_without_requests_is_idle(database):
    database.insert([capacity(seconds=HOUR, gpus=1, busy=0.5)])
    (period,) = read(database, Query(DAY, DAY + DAY_SECONDS)).periods
    assert (period.busy, period.idle) == (0, 2)


def test_more_busy_time_than_time_is_all_of_it(database):
    """Two routers may sample a slot's counters at slightly different times."""
    database.insert([capacity(seconds=HOUR, gpus=1, busy=1.5), usage("a", model="m")])
    (period,) = read(database, Query(DAY, DAY + DAY_SECONDS)).periods
    assert (period.busy, period.idle) == (2, 0)


def test_without_the_price_of_a_gpu_or_gpu_time_there_is_no_cost(database):
    database.insert([usage("a", model="m"), usage("b", at=DAY + DAY_SECONDS, model="m")])
    database.insert([capacity(seconds=HOUR, gpus=1, busy=1.0)])
    query = Query(DAY, DAY + 2 * DAY_SECONDS, group_by=TENANT)
    assert [row.cost for row in read(database, query, None).rows] == [None, None]
    assert read(database, query, None).periods == ()
    found = read(database, query)
    assert [row.cost for row in found.rows] == [2, None]
    assert [row.cost for row in merged(found.rows)] == [2]
    assert margin(found.price, Decimal(0)) is None


def test_a_model_without_prices_makes_the_sum_unknown_not_smaller(database):
    database.insert([usage("a", model="m"), usage("b", model="unknown")])
    query = Query(DAY, DAY + DAY_SECONDS)
    found = read(database, query)
    assert {row.model: row.price is None for row in found.rows} == {"m": False, "unknown": True}
    (whole,) = read(database, Query(DAY, DAY + DAY_SECONDS, group_by=TENANT)).rows
    assert whole.price is None
    assert whole.list_price is None
    assert whole.tokens.requests == 2
    assert found.price > 0


BATCH = parse_tariff(
    "currency: EUR\n"
    "models: {m: {cached: 1, uncached: 2, output: 3, batch: {discount_percent: 50}}}\n",
    "test",
)
BOTH = frozenset({GroupBy.TENANT, GroupBy.BATCH})


def test_lines_of_batches_have_their_price_in_any_grouping(database):
    tokens = {"model": "m", "prompt_tokens": MILLION, "cached_tokens": 0, "output_tokens": 0}
    records = [
        usage("line", protocol="batch", priority="batch", **tokens),
        # The priority by itself does not make a request a line of a batch.
        usage("low", priority="batch", **tokens),
        usage("rest", **tokens),
    ]
    database.insert(records)
    day = (DAY, DAY + DAY_SECONDS)
    (together,) = read(database, Query(*day, group_by=TENANT), tariff=BATCH).rows
    assert (together.batch, together.list_price.total, together.price.total) == (None, 6, 5)
    apart = read(database, Query(*day, group_by=BOTH), tariff=BATCH).rows
    assert [(row.batch, row.tokens.requests, row.price.total) for row in apart] == [
        (False, 2, 4),
        (True, 1, 1),
    ]
    for batch, price in ((True, 1), (False, 4)):
        (row,) = read(database, Query(*day, group_by=TENANT, batch=batch), tariff=BATCH).rows
        assert row.price.total == price
    spent = charges(records, BATCH)
    assert sum(spent.values()) == units(together.price.total)

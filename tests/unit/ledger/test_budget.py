"""Budgets as pure rules: periods, decisions, and the prices of records."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ledger.budget import (
    UNIT,
    Budget,
    Claim,
    Level,
    ModelPrice,
    Period,
    Scope,
    charges,
    judge,
    money,
    units,
    why_no_budgets,
)
from serving.ledger.tariff import Tokens, parse_tariff
from serving.settings import LedgerSettings
from tests.support.ledgers import DAY, usage

TARIFF = parse_tariff(
    """
currency: USD
models:
  deepseek-r1:
    {cached: 1, uncached: 2, output: 3, reasoning: 5, windows: [
      {from: "12:00", until: "13:00", discount_percent: 50},
      {from: "13:00", until: "14:00", prices: {cached: 9, uncached: 4, output: 6}}]}
changes:
  - from: 2025-03-01
    models: {deepseek-r1: {cached: 10, uncached: 20, output: 30}}
""",
    "test.yaml",
)
TENANT = Budget(Scope.TENANT, "alice", Period.DAY, hard=100)
KEY = Budget(Scope.KEY, "alice-1", Period.MONTH, soft=30, hard=50)


def claim(amount, key_id="alice-1", budgets=(TENANT, KEY), number=0):
    return Claim("r", number, "alice", key_id, amount, budgets)


@pytest.mark.parametrize(
    ("period", "at", "start", "end"),
    [
        (Period.DAY, DAY, DAY, DAY + 86_400),
        (Period.DAY, DAY + 86_399.999, DAY, DAY + 86_400),
        # February 2025 has 28 days; DAY is its last.
        (Period.MONTH, DAY + 5, DAY - 27 * 86_400, DAY + 86_400),
        (Period.MONTH, DAY + 86_400, DAY + 86_400, DAY + 32 * 86_400),
        # 31 December 2026 ends the year.
        (Period.MONTH, 1_798_761_599, 1_796_083_200, 1_798_761_600),
    ],
)
def test_periods_are_those_of_utc(period, at, start, end):
    assert period.bounds(at) == (start, end)
    assert Budget(Scope.TENANT, "a", period).renews_at(at) == end


def test_a_claim_is_reserved_until_spent_and_held_reach_the_hard_limit():
    level = Level()
    level.add("alice-1", day=10, month=20, held=5)
    level.add("alice-2", day=40, month=60)
    assert judge(claim(20), level).refused is None
    # The key has now spent 20 of 50 this month and holds 25.
    assert judge(claim(7), level).refused is None
    assert judge(claim(1), level).refused == (KEY, 20, 32)
    # The other key is only limited by the tenant's budget: 50 spent today, 32 held.
    assert judge(claim(17, "alice-2", (TENANT,)), level).refused is None
    assert judge(claim(1, "alice-2", (TENANT,)), level).refused is None
    assert judge(claim(1, "alice-2", (TENANT,)), level).refused == (TENANT, 50, 50)


def test_a_soft_limit_warns_about_what_is_spent_not_about_what_is_held():
    level = Level()
    level.add("alice-1", month=29, held=20)
    assert judge(claim(0), level).warnings == ()
    level.add("alice-1", month=1)
    refused = judge(claim(0), level)
    assert (refused.refused, refused.warnings) == ((KEY, 30, 20), ())
    soft = Budget(Scope.KEY, "alice-1", Period.MONTH, soft=30)
    assert judge(claim(0, budgets=(soft,)), level).warnings == ((soft, 30),)


@given(st.lists(st.integers(1, 60)), st.integers(1, 200))
def test_a_budget_is_overshot_by_less_than_one_claim_and_can_be_spent(amounts, hard):
    budget = Budget(Scope.TENANT, "alice", Period.DAY, hard=hard)
    level = Level()
    taken = [
        each for each in amounts if judge(claim(each, budgets=[budget]), level).refused is None
    ]
    assert sum(taken) < hard + max(taken, default=1)
    assert sum(taken) >= min(hard, sum(amounts))


def test_records_are_charged_by_tenant_key_and_day_at_the_tariff_of_their_end():
    noon = DAY + 12 * 3600
    tokens = {"prompt_tokens": 10, "cached_tokens": 4, "output_tokens": 20}
    plain = (4 * 1 + 6 * 2 + 20 * 3) * 1000
    found = charges(
        [
            usage("a", **tokens),
            usage("b", at=noon, **tokens),
            usage("c", at=noon, key_id=None, reasoning_tokens=5, **tokens),
            usage("d", at=DAY + 86_400, **tokens),
            usage("e", model="unknown"),
        ],
        TARIFF,
    )
    assert found == {
        ("alice", "alice-1", DAY): plain + plain // 2,
        ("alice", "", DAY): plain // 2 + 5 * 2 * 1000 // 2,
        ("alice", "alice-1", DAY + 86_400): 10 * plain,
    }


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 95),
)
def test_no_request_is_dearer_than_what_is_reserved_for_it(
    prompt, output, cached, thought, quarter
):
    """At any time of day, for any cached or reasoning part, and after a price change."""
    price = ModelPrice(TARIFF, "deepseek-r1")
    cached, thought = int(prompt * cached), int(output * thought)
    for now in (DAY, DAY - 86_400, DAY + 86_400):
        most = price.highest(prompt, output, now)
        end = now + quarter * 900
        prices = TARIFF.prices("deepseek-r1", end)
        tokens = Tokens(1, prompt, cached, output, thought)
        assert units(prices.at(quarter, tokens).total) <= most
        whole = price.of(prompt, cached, output, end, batch=False)
        assert price.of(prompt, cached, output, end, batch=True) <= whole <= most


def test_amounts_are_rounded_up_and_shown_exactly():
    assert units(Decimal("0.0000000001")) == 1
    assert units(Decimal("1.5")) == 1_500_000_000
    assert money(1_500_000_000) == "1.5"
    assert money(100 * UNIT) == "100"
    assert money(0) == "0"


def test_budgets_require_a_ledger_and_prices(tmp_path):
    (tmp_path / "tariff.yaml").write_text(
        "currency: USD\nmodels: {m: {cached: 1, uncached: 1, output: 1}}"
    )
    assert "set ledger.directory" in why_no_budgets(LedgerSettings(), ["m"], DAY)
    ledger = LedgerSettings(directory="x", tariff_file=str(tmp_path / "tariff.yaml"))
    assert "has none of model other" in why_no_budgets(ledger, ["m", "other"], DAY)
    assert why_no_budgets(ledger, ["m"], DAY) is None

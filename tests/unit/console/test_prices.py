"""The price list of the current window of the tariff."""

import pytest

from serving.console.prices import price_list, price_lists
from serving.fleet.models import ModelStatus
from serving.ledger.tariff import parse_tariff

TARIFF = parse_tariff(
    """
currency: USD
models:
  r1:
    cached: 0.1
    uncached: 0.5
    output: 2
    windows:
      - {from: "16:30", until: "00:30", discount_percent: 75}
""",
    "the test",
)


@pytest.mark.parametrize(
    ("hour", "prices"),
    [
        (12, (0.1, 0.5, 2.0)),
        (16.25, (0.1, 0.5, 2.0)),
        (16.5, (0.025, 0.125, 0.5)),
        (24, (0.025, 0.125, 0.5)),
    ],
)
def test_the_window_of_the_day_decides(hour, prices):
    found = price_list(TARIFF, "r1", 1_000 * 86_400 + hour * 3600)
    assert found["currency"] == "USD"
    assert (found["cached"], found["uncached"], found["output"]) == prices


def test_a_model_without_a_price_has_no_list():
    assert price_list(TARIFF, "other", 0) is None


def test_each_model_has_its_own_list_under_all_its_names():
    models = (ModelStatus("r1", ("short",)), ModelStatus("other"))
    found = price_lists(TARIFF, models, 0)
    assert sorted(found) == ["r1", "short"]
    assert found["short"] == price_list(TARIFF, "r1", 0)

"""Tariffs: exact prices by kind of token and time of day, and messages for broken files."""

import random
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import SettingsError
from serving.ledger.tariff import BUNDLED, ZERO, Tokens, load_tariff, parse_tariff

PLAIN = "cached: 1, uncached: 2, output: 3"
MILLION = 10**6
NOW = 1_800_000_000


def tariff(model="m", prices=PLAIN):
    return parse_tariff(f"currency: USD\nmodels: {{{model}: {{{prices}}}}}", "test.yaml")


def at(text):
    hours, minutes = text.split(":")
    return int(hours) * 4 + int(minutes) // 15


def test_each_kind_of_token_has_its_price():
    prices = tariff(prices=f"{PLAIN}, reasoning: 5").prices("m", NOW)
    tokens = Tokens(1, 10 * MILLION, 4 * MILLION, 7 * MILLION, 2 * MILLION)
    amounts = prices.of(tokens)
    assert (amounts.cached, amounts.uncached, amounts.output, amounts.reasoning) == (4, 12, 15, 10)
    assert amounts.total == 41
    # Without a separate price, reasoning is priced as output.
    assert tariff().prices("m", NOW).of(tokens).total == 4 + 12 + 21


def test_a_tenth_of_a_cent_is_exact():
    """As a float, 0.1 + 0.2 is not 0.3."""
    prices = tariff(prices="cached: 0.1, uncached: 0.2, output: 0").prices("m", NOW)
    assert prices.of(Tokens(1, 2 * MILLION, MILLION, 0, 0)).total == Decimal("0.3")
    assert prices.of(Tokens(1, 1, 1, 0, 0)).total == Decimal("0.0000001")


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ('"16:30", until: "00:30"', ("16:30", "23:45", "00:00", "00:15"), ("16:15", "00:30")),
        ('"00:00", until: "06:00"', ("00:00", "05:45"), ("06:00", "23:45")),
        ("16:30, until: 18:00", ("16:30", "17:45"), ("18:00",)),
    ],
    ids=["over midnight", "from midnight", "unquoted times are no numbers"],
)
def test_a_window_applies_from_its_start_until_its_end(window, inside, outside):
    prices = tariff(prices=f"{PLAIN}, windows: [{{from: {window}, discount_percent: 75}}]").prices(
        "m", NOW
    )
    tokens = Tokens(1, MILLION, 0, 0, 0)
    assert {prices.at(at(time), tokens).total for time in inside} == {Decimal("0.5")}
    assert {prices.at(at(time), tokens).total for time in outside} == {2}
    assert prices.of(tokens).total == 2


def test_prices_of_the_most_digits_are_exact():
    window = '{from: "00:00", until: "12:00", discount_percent: 33.33}'
    text = f"cached: 0.123456789, uncached: 2, output: 3, windows: [{window}]"
    prices = tariff(prices=text).prices("m", NOW)
    tokens = Tokens(1, 10**13 - 1, 10**13 - 1)
    found = prices.at(at("06:00"), tokens).cached
    assert Fraction(found) == Fraction(123456789, 10**15) * (10**13 - 1) * Fraction(6667, 10**4)


def test_models_without_prices_have_none_unless_the_tariff_has_a_default():
    assert tariff("m").prices("other", NOW) is None
    assert tariff('"*"').prices("other", NOW).output == 3


def test_the_bundled_tariff_is_deepseeks():
    bundled = load_tariff(None)
    assert bundled.currency == "USD"
    tokens = Tokens(1, 2 * MILLION, MILLION, MILLION, MILLION // 2)
    for name, listed, discounted in (
        ("deepseek-r1", "0.14 0.55 2.19", "0.035 0.135 0.55"),
        ("deepseek-reasoner", "0.14 0.55 2.19", "0.035 0.135 0.55"),
        ("deepseek-v3", "0.07 0.27 1.10", "0.035 0.135 0.55"),
        ("deepseek-chat", "0.07 0.27 1.10", "0.035 0.135 0.55"),
    ):
        prices = bundled.prices(name, NOW)
        for amounts, expected in (
            (prices.of(tokens), listed),
            (prices.at(at("00:30"), tokens), listed),
            (prices.at(at("16:30"), tokens), discounted),
        ):
            cached, uncached, output = map(Decimal, expected.split())
            assert (amounts.cached, amounts.uncached) == (cached, uncached)
            assert amounts.output + amounts.reasoning == output
    assert parse_tariff(BUNDLED.read_text("utf-8"), "bundled") == bundled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("currency: [", "line 2: "),
        ("", "file: Input should be"),
        ("currency: USD", "models: Field required"),
        ("currency: dollars\nmodels: {m: {}}", "currency: .*models.m.cached: Field required"),
        ("currency: USD\nmodels: {}", "models: .*at least 1"),
        (f"currency: USD\nmodels: {{m: {{{PLAIN}, reasonning: 1}}}}", "models.m.reasonning: Extra"),
        ("currency: USD\nmodels: {m: {cached: -1, uncached: 2, output: 3}}", "models.m.cached: "),
        ("currency: USD\nmodels: {m: {cached: x, uncached: 2, output: .nan}}", "models.m.output: "),
        ("currency: USD\nmodels: {m: {cached: 1, uncached: 2, output: inf}}", "models.m.output: "),
        (
            "currency: USD\nmodels: {m: {cached: 1, uncached: 2, output: 0.12345678901}}",
            "models.m.output: .*no more than 10 digits",
        ),
    ],
)
def test_a_broken_file_is_named_with_the_place(text, message):
    with pytest.raises(SettingsError, match=rf"tariff t\.yaml: .*{message}"):
        parse_tariff(text, "t.yaml")


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ('{from: "25:00", until: "01:00", discount_percent: 1}', "quarter of an hour"),
        ('{from: "16:20", until: "17:00", discount_percent: 1}', "quarter of an hour"),
        ('{from: "16:00", until: "16:00", discount_percent: 1}', "must differ"),
        ('{from: "16:00", until: "17:00"}', "either discount_percent or prices"),
        ('{from: "16:00", until: "17:00", discount_percent: 101}', "less than or equal to 100"),
        (
            (
                '{from: "16:00", until: "18:00", discount_percent: 1},'
                '{from: "17:45", until: "19:00", discount_percent: 2}'
            ),
            "windows overlap",
        ),
    ],
)
def test_a_broken_window_is_refused(windows, message):
    with pytest.raises(SettingsError, match=message):
        tariff(prices=f"{PLAIN}, windows: [{windows}]")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"cannot read tariff .*none\.yaml: No such file"):
        load_tariff(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("batch", "listed", "night"),
    [
        # Of a million tokens each: cached 8, uncached 16, output 32; at night 2, 12, 32.
        ("{discount_percent: 50}", (4, 8, 16), (2, 8, 16)),
        ("{discount_percent: 0}", (8, 16, 32), (2, 12, 32)),
        ("{discount_percent: 100}", (0, 0, 0), (0, 0, 0)),
        ("{prices: {cached: 9, uncached: 1, output: 31}}", (8, 1, 31), (2, 1, 31)),
    ],
    ids=["half", "none", "free", "prices"],
)
def test_a_batchs_line_pays_the_lower_price_for_each_kind_of_token(batch, listed, night):
    window = '{from: "00:00", until: "06:00", prices: {cached: 2, uncached: 12, output: 32}}'
    text = f"cached: 8, uncached: 16, output: 32, windows: [{window}], batch: {batch}"
    prices = tariff(prices=text).prices("m", NOW)
    tokens = Tokens(1, 2 * MILLION, MILLION, MILLION)
    for time, expected in (("06:00", listed), ("00:00", night)):
        found = prices.at(at(time), tokens, batch=True)
        assert (found.cached, found.uncached, found.output) == expected
    assert prices.at(at("06:00"), tokens) == prices.of(tokens)


def test_without_batch_prices_a_line_pays_as_other_requests():
    prices = tariff().prices("m", NOW)
    tokens = Tokens(1, MILLION, 0, MILLION)
    assert prices.at(0, tokens, batch=True) == prices.at(0, tokens)


def test_the_bundled_tariff_halves_the_list_price_of_lines():
    prices = load_tariff(None).prices("deepseek-r1", NOW)
    tokens = Tokens(1, 2 * MILLION, MILLION, MILLION, MILLION // 2)
    assert prices.at(at("12:00"), tokens, batch=True).total * 2 == prices.of(tokens).total


@pytest.mark.parametrize("batch", ["{}", f"{{discount_percent: 1, prices: {{{PLAIN}}}}}"])
def test_broken_batch_prices_are_refused(batch):
    with pytest.raises(SettingsError, match=r"batch: .*either discount_percent or prices"):
        tariff(prices=f"{PLAIN}, batch: {batch}")


COUNTS = st.integers(0, 10**9)
REQUESTS = st.lists(
    st.tuples(st.integers(0, 95), st.booleans(), COUNTS, COUNTS, COUNTS, COUNTS),
    min_size=1,
    max_size=20,
)


@given(REQUESTS, st.randoms(use_true_random=False))
def test_a_bill_is_the_sum_of_its_requests_in_any_grouping(requests, rng: random.Random):
    prices = load_tariff(None).prices("deepseek-r1", NOW)
    made = [
        ((quarter, batch), Tokens(1, cached + uncached, cached, output + reasoning, reasoning))
        for quarter, batch, cached, uncached, output, reasoning in requests
    ]

    def total(items):
        return sum((prices.at(when, used, batch=batch) for (when, batch), used in items), ZERO)

    each = total(made)
    rng.shuffle(made)
    grouped: dict[tuple[int, bool], Tokens] = {}
    for key, tokens in made:
        grouped[key] = grouped.get(key, Tokens()) + tokens
    assert total(grouped.items()) == each


M = "m: {cached: 1, uncached: 2, output: 4}"


def dated(*changes):
    """Return a tariff of two models with changes, each a date and models."""
    text = "currency: USD\nmodels:\n  m: {cached: 1, uncached: 2, output: 3}\n"
    text += "  other: {cached: 0, uncached: 0, output: 9}\nchanges:\n"
    text += "".join(f"  - {{from: {day}, models: {{{models}}}}}\n" for day, models in changes)
    return parse_tariff(text, "test.yaml")


def test_prices_change_at_midnight_utc_for_the_models_that_are_named():
    every = '"*": {cached: 1, uncached: 2, output: 5}'
    found = dated(("2027-01-01", M), ("2027-02-01", every))
    january, february = 1_798_761_600, 1_801_440_000
    for at, outputs in (
        (january - 1, (3, 9, None)),
        (january, (4, 9, None)),
        (february - 1, (4, 9, None)),
        (february, (4, 9, 5)),
    ):
        prices = [found.prices(name, at) for name in ("m", "other", "new")]
        assert tuple(each and each.output for each in prices) == outputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("2027", M)], "must be a date"),
        ([("2027-02-30", M)], r"changes\.0\.from"),
        ([("2027-01-01", "")], r"changes\.0\.models"),
        ([("2027-01-01", M), ("2027-01-01", M)], "increasing dates"),
    ],
)
def test_broken_changes_are_refused(changes, message):
    with pytest.raises(SettingsError, match=message):
        dated(*changes)

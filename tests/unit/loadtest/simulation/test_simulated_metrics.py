import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.simulation.simulated_metrics import Buckets, SimulatedMetrics, bounds_of, quantile
from serving.autoscaler.signals import Signal
from serving.settings import AutoscalerSettings
from serving.telemetry import metrics


def test_the_buckets_are_those_of_the_metrics():
    assert bounds_of(metrics.TIME_TO_FIRST_TOKEN)[0] == 0.005
    assert bounds_of(metrics.INTER_TOKEN_LATENCY)[:2] == (0.001, 0.0025)


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        # What `promtool test rules` gives for histogram_quantile over the same buckets.
        pytest.param([10, 0, 0], 0.5, 0.5, id="inside the first, from 0"),
        pytest.param([0, 10, 0], 0.9, 1.9, id="inside the second"),
        pytest.param([5, 5, 0], 0.5, 1.0, id="on a bound"),
        pytest.param([0, 0, 3], 0.9, 2.0, id="past the last bound"),
        pytest.param([0, 0, 0], 0.9, None, id="nothing"),
    ],
)
def test_quantile(counts, share, expected):
    assert quantile((1.0, 2.0), counts, share) == expected


@given(st.lists(st.floats(0.001, 50), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values, share):
    buckets = Buckets((0.5, 1.0, 5.0, 10.0, 60.0))
    for value in values:
        buckets.observe(value)
    found = quantile(buckets.bounds, list(buckets.counts), share)
    assert 0 <= found <= 60
    assert sum(value <= found for value in values) <= len(values)


def scraped(*times, **settings):
    scaling = AutoscalerSettings(window=20.0, scrape_interval=5.0, **settings)
    seen = SimulatedMetrics(scaling)
    for at in times:
        seen.tokens += 100
        seen.firsts += 5
        seen.ttft.observe(0.3, 5)
        seen.scrape(at, queued=2, queued_tokens=50, inflight=7)
    return seen


def test_signals_of_a_window():
    found = scraped(0, 5, 10, 15, 20, 25).signals(27.0, 3, 1)
    value = {signal: reading.value for signal, reading in found.items()}
    assert value[Signal.TOKEN_RATE] == 20.0
    assert value[Signal.REQUEST_RATE] == 1.0
    assert 0.2 < value[Signal.TTFT_P90] <= 0.4
    assert value[Signal.ITL_P90] is None
    assert (value[Signal.QUEUE_REQUESTS], value[Signal.INFLIGHT]) == (2, 7)
    assert value[Signal.READY_GROUPS] == 3
    assert found[Signal.TOKEN_RATE].age == 2.0
    assert found[Signal.TOKEN_RATE].gap == 0.0


def test_what_is_counted_stands_for_more():
    found = scraped(0, 5, 10, 15).signals(15.0, 30, 10)
    assert found[Signal.TOKEN_RATE].value == 200.0
    assert found[Signal.QUEUE_TOKENS].value == 500
    assert found[Signal.READY_GROUPS].value == 30


def test_nothing_is_known_before_the_first_scrape():
    assert scraped().signals(3.0, 1, 1) == {}


def test_gaps_are_counted():
    assert scraped(0, 5).signals(5.0, 1, 1)[Signal.TOKEN_RATE].gap == 0.5

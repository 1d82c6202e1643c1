"""TokenTimings: the values of the latency metrics."""

import pytest

from serving.requests.token_timings import TokenTimings
from serving.telemetry.metrics import REGISTRY
from tests.support.clock import ManualClock


def total(name):
    return REGISTRY.get_sample_value(f"moe_{name}_seconds_sum")


def seen(name, act):
    before = total(name)
    act()
    return pytest.approx(total(name) - before)


def test_the_first_token_is_timed_from_arrival_and_from_sending():
    clock = ManualClock(100.0)
    timings = TokenTimings(clock, arrived_at=97.0)
    clock.now = 102.0  # it was queued
    timings.sent(clock.now)
    clock.now = 102.5
    before = total("rank_time_to_first_token")
    assert seen("time_to_first_token", lambda: timings.count(1)) == 5.5
    assert total("rank_time_to_first_token") - before == pytest.approx(0.5)
    assert timings.first_at == 102.5


def test_without_an_edge_it_arrives_when_it_is_made():
    clock = ManualClock(100.0)
    timings = TokenTimings(clock)
    clock.now += 2.0
    assert seen("time_to_first_token", lambda: timings.count(1)) == 2.0


def test_a_delta_of_several_tokens_is_divided_among_them():
    clock = ManualClock(100.0)
    timings = TokenTimings(clock)
    timings.count(1)
    clock.now += 0.9
    assert seen("inter_token_latency", lambda: timings.count(3)) == 0.3


def test_the_gap_of_a_resumption_ends_with_the_next_token():
    clock = ManualClock(100.0)
    timings = TokenTimings(clock)
    timings.count(1)
    timings.lost()
    clock.now += 1.0
    timings.lost()  # the next group was also lost
    clock.now += 0.5
    assert seen("resume", lambda: timings.count(1)) == 1.5
    assert seen("resume", lambda: timings.count(1)) == 0.0

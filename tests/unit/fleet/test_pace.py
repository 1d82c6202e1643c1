"""Pace: what the latency metrics are fed with."""

import pytest

from serving.requests.stream import Pace
from serving.telemetry.metrics import REGISTRY


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


def total(name):
    return REGISTRY.get_sample_value(f"moe_{name}_seconds_sum")


def seen(name, act):
    before = total(name)
    act()
    return pytest.approx(total(name) - before)


def test_the_first_token_is_timed_from_arrival_and_from_sending():
    clock = Clock()
    pace = Pace(clock, arrived_at=97.0)
    clock.now = 102.0  # it waited for its turn
    pace.sent()
    clock.now = 102.5
    before = total("rank_time_to_first_token")
    assert seen("time_to_first_token", lambda: pace.count(1)) == 5.5
    assert total("rank_time_to_first_token") - before == pytest.approx(0.5)
    assert pace.first_at == 102.5


def test_without_an_edge_it_arrives_when_it_is_made():
    clock = Clock()
    pace = Pace(clock)
    clock.now += 2.0
    assert seen("time_to_first_token", lambda: pace.count(1)) == 2.0


def test_a_delta_of_several_tokens_is_divided_among_them():
    clock = Clock()
    pace = Pace(clock)
    pace.count(1)
    clock.now += 0.9
    assert seen("inter_token_latency", lambda: pace.count(3)) == 0.3


def test_the_gap_of_a_resumption_ends_with_the_next_token():
    clock = Clock()
    pace = Pace(clock)
    pace.count(1)
    pace.lost()
    clock.now += 1.0
    pace.lost()  # the next group too
    clock.now += 0.5
    assert seen("resume", lambda: pace.count(1)) == 1.5
    assert seen("resume", lambda: pace.count(1)) == 0.0

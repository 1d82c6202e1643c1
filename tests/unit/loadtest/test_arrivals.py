import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import RateProfile, arrivals, gaps


@given(
    start=st.floats(0, 50),
    end=st.floats(0.1, 50),
    duration=st.floats(0.5, 60),
    count=st.floats(0, 500),
)
def test_the_inverse_is_the_inverse(start, end, duration, count):
    profile = RateProfile(start, end, duration)
    at = profile.time_of(count)
    if at <= duration:
        slope = (end - start) / duration
        assert start * at + slope * at * at / 2 == pytest.approx(count, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("process", "burstiness", "variation"),
    [
        pytest.param("constant", 9.0, 0.0, id="constant"),
        pytest.param("poisson", 9.0, 1.0, id="poisson"),
        pytest.param("gamma", 3.0, 3.0, id="bursts"),
        pytest.param("gamma", 0.5, 0.5, id="smoother-than-poisson"),
    ],
)
def test_gaps_have_mean_one_and_the_variation_asked_for(process, burstiness, variation):
    gap = gaps(process, burstiness, random.Random(1))
    drawn = [gap() for _ in range(40_000)]
    assert statistics.mean(drawn) == pytest.approx(1, rel=0.06)
    assert statistics.pstdev(drawn) == pytest.approx(variation, rel=0.1)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        pytest.param(10.0, 10.0, 99, id="flat"),
        pytest.param(0.0, 20.0, 99, id="up"),
        pytest.param(20.0, 0.0, 99, id="down-to-nothing"),
    ],
)
def test_as_many_come_as_the_rates_say(start, end, expected):
    due = list(arrivals(RateProfile(start, end, 10.0), lambda: 1.0))
    assert len(due) == pytest.approx(expected, abs=1)
    assert due == sorted(due)
    assert all(0 < at < 10 for at in due)


def test_a_ramp_up_is_later_than_a_ramp_down():
    up, down = (
        list(arrivals(RateProfile(*rates, 10.0), lambda: 1.0)) for rates in ((1, 19), (19, 1))
    )
    assert statistics.mean(up) > 5 > statistics.mean(down)

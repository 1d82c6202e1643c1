"""Waits: exact where an exact theory exists, and monotone elsewhere."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.planner.queueing import mean_wait, p90_count, p90_wait

loads = st.floats(0.01, 0.98)


@given(loads, st.floats(1e-3, 100))
def test_one_server_with_exponential_service_is_exact(load: float, service: float) -> None:
    # M/M/1: P(wait > t) = load * exp(-t * (1 - load) / service).
    assert mean_wait(load, service, 1, 1.0) == pytest.approx(load / (1 - load) * service)
    exact = max(0.0, math.log(load * 10)) * service / (1 - load)
    if load > 0.1:
        assert p90_wait(load, service, 1, 1.0) == pytest.approx(exact)


@given(loads, st.integers(1, 200), st.floats(0, 4))
def test_more_load_waits_longer_and_more_servers_less(
    load: float, servers: int, spread: float
) -> None:
    wait = mean_wait(load, 1.0, servers, spread)
    assert wait <= mean_wait(load + (1 - load) / 2, 1.0, servers, spread)
    assert mean_wait(load, 1.0, servers + 1, spread) <= wait
    assert wait <= mean_wait(load, 1.0, servers, spread + 1)


@pytest.mark.parametrize("load", [1.0, 1.5])
def test_an_overloaded_queue_grows_for_ever(load: float) -> None:
    assert math.isinf(mean_wait(load, 1.0, 4, 0.0))
    assert math.isinf(p90_wait(load, 1.0, 4, 0.0))


def test_percentile_of_a_count() -> None:
    assert p90_count(0.0) == 0.0
    assert p90_count(100.0) == pytest.approx(112.8, abs=0.1)  # Poisson(100): 113

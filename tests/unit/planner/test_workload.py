"""Workloads: rejected values, and the moments of lengths."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidRequest
from serving.planner.workload import Workload, of_lengths, p90_ratio, spread_of

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        pytest.param((0, 10, 10), "the rate is 0 requests/s", id="no rate"),
        pytest.param((-1, 10, 10), "the rate is -1", id="negative rate"),
        pytest.param((NAN, 10, 10), "the rate is nan", id="nan"),
        pytest.param((INF, 10, 10), "from 0.0001 to 1e+06", id="infinite rate"),
        pytest.param((1e9, 10, 10), "from 0.0001 to 1e+06", id="absurd rate"),
        pytest.param((1, 0, 10), "prompts' mean length is 0", id="no prompt"),
        pytest.param((1, 10, 0), "outputs' mean length is 0 tokens; it", id="none"),
        pytest.param((1, 1e12, 10), "from 1 to 1e+07", id="absurd prompt"),
        pytest.param((1, 10, NAN), "outputs' mean length is nan", id="nan output"),
        pytest.param((1, 10, 10, 1.0), "last token is always computed", id="all cached"),
        pytest.param((1, 10, 10, NAN), "cached share of the prompts is nan", id="nan cached"),
        pytest.param((1, 10, 10, 0, -1), "spread of the prompts' lengths is -1", id="spread"),
    ],
)
def test_broken_loads_are_rejected_in_words(figures: tuple[float, ...], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Workload(*figures)
    assert message in str(refused.value)


@given(st.floats(1, 1e5), st.floats(1, 2.25))
def test_mean_and_percentile_determine_the_spread(mean: float, ratio: float) -> None:
    assert p90_ratio(spread_of(mean, mean * ratio)) == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("p90", [9.0, 23.0])
def test_percentiles_that_no_log_normal_distribution_has(p90: float) -> None:
    with pytest.raises(InvalidRequest, match=r"1 to 2\.27 times the mean"):
        spread_of(10.0, p90)


def test_lengths_of_requests() -> None:
    load = of_lengths(2.0, [(100, 10), (300, 30)], cached=0.5)
    assert (load.prompt, load.output, load.computed, load.reused) == (200, 20, 100, 100)
    # Of 40 tokens, 10 have up to 10 before them and 30 up to 30: (10 * 5 + 30 * 15) / 40.
    assert load.context == pytest.approx(200 + (10 * 5 + 30 * 15) / 40)


def test_no_requests_are_no_load() -> None:
    with pytest.raises(InvalidRequest, match="no requests"):
        of_lengths(1.0, [], cached=0.0)
    with pytest.raises(InvalidRequest, match="prompts' mean length is 0"):
        of_lengths(1.0, [(0, 5)], cached=0.0)

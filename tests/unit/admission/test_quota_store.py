"""Sliding windows and tenants' limits: the arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission.quota_store import WINDOW, Window
from serving.admission.quotas import TenantLimits, default_limits
from serving.settings import AdmissionSettings


@pytest.mark.parametrize(
    ("limits", "limited"),
    [
        pytest.param(TenantLimits(), False, id="nothing"),
        pytest.param(TenantLimits(weight=3), False, id="a weight is no limit"),
        pytest.param(TenantLimits(requests_per_minute=1), True, id="requests"),
        pytest.param(TenantLimits(tokens_per_minute=1), True, id="tokens"),
        pytest.param(TenantLimits(concurrent_streams=1), True, id="streams"),
    ],
)
def test_limited(limits, limited):
    assert limits.limited is limited


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_weight_must_be_above_zero(weight):
    with pytest.raises(ValueError, match="weight"):
        TenantLimits(weight=weight)


def test_defaults_come_from_the_settings():
    settings = AdmissionSettings(requests_per_minute=1, tokens_per_minute=2, concurrent_streams=3)
    assert default_limits(settings)("anybody") == TenantLimits(1, 2, 3)
    assert not default_limits(AdmissionSettings())("anybody").limited


@pytest.mark.parametrize(
    ("window", "limit", "seconds"),
    [
        pytest.param(Window(0, 0, 9, 30), 10, 0, id="below"),
        pytest.param(Window(0, 0, 10, 30), 10, 30, id="used up in this window"),
        pytest.param(Window(0, 0, 20, 30), 10, 60, id="twice the limit: until half has passed"),
        pytest.param(Window(60, 30, 0, 30), 30, 0, id="the last window: at the limit"),
        pytest.param(Window(60, 40, 0, 40), 30, 10, id="the last window fades"),
        pytest.param(Window(60, 40, 10, 40), 30, 20, id="both windows"),
    ],
)
def test_seconds_until_there_is_room(window, limit, seconds):
    assert window.seconds_until(limit) == pytest.approx(seconds)


def later(window, seconds):
    """Return the window ``seconds`` later, if nothing is added."""
    if seconds < window.current_left:
        return Window(
            window.previous,
            max(window.previous_left - seconds, 0),
            window.current,
            window.current_left - seconds,
        )
    left = max(WINDOW - (seconds - window.current_left), 0)
    return Window(window.current, left, 0, left)


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.5, WINDOW), st.integers(1, 300))
def test_there_is_room_then_and_not_before(previous, current, left, limit):
    window = Window(previous, left, current, left)
    seconds = window.seconds_until(limit)
    assert later(window, seconds + 0.01).used < limit
    if seconds > 0.02:
        assert later(window, seconds - 0.01).used >= limit

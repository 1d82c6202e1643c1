"""Bounds, cost cap and step."""

import pytest

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.limits import charge, limit_step, limits_at
from serving.settings import ScheduleFloor
from tests.unit.autoscaler.observations import settings

DAY = 20_000 * 86400.0
ALWAYS = (ScheduleFloor(when="* * * * *", groups=3),)


@pytest.mark.parametrize(
    ("changes", "spent", "expected"),
    [
        pytest.param({}, 0.0, (0, 8), id="bounds"),
        pytest.param({"min_groups": 2}, 0.0, (2, 8), id="min"),
        pytest.param({"schedule": ALWAYS}, 0.0, (3, 8), id="schedule"),
        pytest.param({"schedule": ALWAYS, "max_groups": 2}, 0.0, (2, 2), id="schedule-over-max"),
        pytest.param({"schedule": ALWAYS, "min_groups": 4}, 0.0, (4, 8), id="schedule-under-min"),
        # 2 GPUs for 300 s are 1/6 GPU-hour per group.
        pytest.param({"gpu_hours_per_day": 10.0}, 9.5, (0, 3), id="cap-near"),
        pytest.param({"gpu_hours_per_day": 10.0}, 10.0, (0, 0), id="cap-reached"),
        pytest.param({"gpu_hours_per_day": 10.0, "min_groups": 1}, 99.0, (1, 1), id="cap-and-min"),
        pytest.param(
            {"gpu_hours_per_day": 10.0, "schedule": ALWAYS}, 10.0, (0, 0), id="cap-over-schedule"
        ),
    ],
)
def test_limits(changes, spent, expected):
    found = limits_at(PolicyState(spent=spent), DAY, 2.0, settings(**changes))
    assert (found.least, found.most) == expected


def test_gpu_hours_are_counted_and_forgotten_at_midnight():
    state = charge(PolicyState(), 3, 2.0, DAY)
    assert state.spent == 0.0
    state = charge(state, 3, 2.0, DAY + 3600)
    assert state.spent == pytest.approx(6.0)
    state = charge(state, 1, 2.0, DAY + 86400 + 1800)
    assert state.spent == pytest.approx(1.0)


def test_time_that_goes_back_costs_nothing():
    state = charge(charge(PolicyState(), 3, 2.0, DAY + 100), 3, 2.0, DAY + 50)
    assert state.spent == 0.0


@pytest.mark.parametrize(
    ("current", "wanted", "expected"), [(2, 9, 4), (2, 3, 3), (5, 0, 4), (5, 5, 5)]
)
def test_step(current, wanted, expected):
    assert limit_step(current, wanted, settings(max_step_up=2, max_step_down=1)) == expected

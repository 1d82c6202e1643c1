"""A day's GPU-hours: bounds, and what the autoscaler saves."""

import dataclasses
from functools import cache

import pytest

from serving.planner.day import Day, day_of, rate_at
from serving.planner.group import Objective
from serving.planner.plans import Mode, Plan
from serving.planner.search import search
from serving.planner.shapes import Choices
from tests.support.planning import LOAD, question

OBJECTIVE = Objective()


@cache
def plan_at(rate: float, mode: Mode) -> Plan:
    load = dataclasses.replace(LOAD, rate=rate)
    choices = Choices(workers=16, tensor=1, drafts=(0,))
    return search(question(load=load, modes=(mode,), choices=choices))[0]


def a_day(plan: Plan, low: float, startup: float = 600.0) -> Day:
    return day_of(plan, LOAD, OBJECTIVE, low=low, startup=startup)


def test_the_load_of_a_day() -> None:
    assert rate_at(0, 10, 0.3) == pytest.approx(3)
    assert rate_at(43_200, 10, 0.3) == pytest.approx(10)
    assert rate_at(86_400, 10, 0.3) == pytest.approx(3)


@pytest.mark.parametrize("mode", Mode)
def test_the_autoscaler_saves_gpu_hours_and_keeps_the_objectives(mode: Mode) -> None:
    plan = plan_at(150.0, mode)
    day = a_day(plan, 0.2)
    assert day.fixed == plan.gpus * 24
    # The minimum that could serve the load at each time if groups were divisible.
    least = sum(
        pool.variant.workers * rate_at(hour * 3600, plan.rate, 0.2) / pool.capacity
        for pool in plan.pools
        for hour in range(24)
    )
    assert least < day.autoscaled < day.fixed
    assert day.overloaded == 0


def test_a_flatter_day_saves_less() -> None:
    plan = plan_at(150.0, Mode.MIXED)
    hours = [a_day(plan, low).autoscaled for low in (0.1, 0.5, 0.9)]
    assert hours == sorted(hours)
    flat = a_day(plan, 1.0)
    assert flat.autoscaled == pytest.approx(flat.fixed)


def test_one_group_is_not_scaled() -> None:
    day = a_day(plan_at(5.0, Mode.MIXED), 0.1)
    assert (day.autoscaled, day.overloaded) == (day.fixed, 0)


def test_groups_that_start_slowly_come_too_late() -> None:
    # Four hours: the load rises from a fifth to all of it within twelve.
    assert a_day(plan_at(150.0, Mode.MIXED), 0.05, startup=4 * 3600).overloaded > 0

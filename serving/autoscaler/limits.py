"""Limits that apply after the votes: bounds, schedule floor, cost cap and step size."""

from dataclasses import dataclass, replace

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.schedule import floor_at
from serving.settings import AutoscalerSettings

_DAY = 86400.0
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The minimum and maximum number of groups, and the reason for each."""

    least: int
    most: int
    least_because: str
    most_because: str


def limits_at(state: PolicyState, now: float, gpus: float, settings: AutoscalerSettings) -> Limits:
    """Return the bounds; min_groups overrides the cost cap, which overrides the schedule.

    Args:
        state: Policy state, charged up to ``now``.
        now: Unix time, seconds.
        gpus: GPUs of one group.
        settings: The settings group ``autoscaler``.
    """
    most, most_because = settings.max_groups, "max_groups"
    for capacity, each, name in (
        (settings.max_gpus, gpus, "max_gpus"),
        (settings.max_nodes, settings.kubernetes.workers_per_group, "max_nodes"),
    ):
        if capacity is not None and each > 0 and int(capacity // each) < most:
            most, most_because = int(capacity // each), f"{name} {capacity:g}"
    cap = affordable_groups(state, gpus, settings)
    if cap is not None and cap < most:
        most, most_because = cap, f"{state.spent:.3g} of {settings.gpu_hours_per_day:g} GPU-hours"
    least, least_because = settings.min_groups, "min_groups"
    floor, expression = floor_at(settings.schedule, now)
    if floor > least:
        least, least_because = min(floor, most), f"schedule {expression}"
    return Limits(least, max(least, most), least_because, most_because)


def affordable_groups(state: PolicyState, gpus: float, settings: AutoscalerSettings) -> int | None:
    """Return how many groups the day's remaining GPU-hours pay for, at least min_groups.

    A group must be affordable for one scale-down window; otherwise it would be removed right after
    its start. Returns None if there is no cost cap.
    """
    if settings.gpu_hours_per_day is None or gpus <= 0:
        return None
    left = settings.gpu_hours_per_day - state.spent
    each = gpus * settings.down_window / _HOUR
    return max(settings.min_groups, int(max(0.0, left) // each))


def charge(state: PolicyState, groups: int, gpus: float, now: float) -> PolicyState:
    """Return ``state`` plus the GPU-hours that ``groups`` used since the last charge.

    Each day starts at 00:00 UTC with nothing spent; usage across midnight counts from midnight.
    """
    day = int(now // _DAY)
    begin = day * _DAY
    spent = state.spent if state.spent_day == day else 0.0
    since = now if state.spent_at is None else max(state.spent_at, begin)
    hours = max(0.0, now - since) / _HOUR
    return replace(state, spent_day=day, spent=spent + hours * groups * gpus, spent_at=now)


def limit_step(current: int, wanted: int, settings: AutoscalerSettings) -> int:
    """Return ``wanted``, limited to one step up or down from ``current``."""
    return max(min(wanted, current + settings.max_step_up), current - settings.max_step_down)

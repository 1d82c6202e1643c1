"""What no vote may pass: bounds, the schedule's floor, the cost cap, the step. Pure."""

from dataclasses import dataclass, replace

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.schedule import floor_at
from serving.settings import AutoscalerSettings

_DAY = 86400.0
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Least and most groups now, and what set them."""

    least: int
    most: int
    least_because: str
    most_because: str


def limits_at(state: PolicyState, now: float, gpus: float, settings: AutoscalerSettings) -> Limits:
    """Return the bounds at ``now``. The cost cap wins over the schedule, min_groups over both.

    Args:
        state: already charged up to ``now``.
        now: seconds since the Unix epoch.
        gpus: GPUs of one group.
        settings: the group ``autoscaler``.
    """
    most, most_because = settings.max_groups, "max_groups"
    cap = affordable(state, gpus, settings)
    if cap is not None and cap < most:
        most, most_because = cap, f"{state.spent:.3g} of {settings.gpu_hours_per_day:g} GPU-hours"
    least, least_because = settings.min_groups, "min_groups"
    floor, expression = floor_at(settings.schedule, now)
    if floor > least:
        least, least_because = min(floor, most), f"schedule {expression}"
    return Limits(least, max(least, most), least_because, most_because)


def affordable(state: PolicyState, gpus: float, settings: AutoscalerSettings) -> int | None:
    """Return how many groups the rest of the day's GPU-hours pays for, at least min_groups.

    A group must be payable for one scale-down window, or it would go as soon as it came.
    """
    if settings.gpu_hours_per_day is None or gpus <= 0:
        return None
    left = settings.gpu_hours_per_day - state.spent
    each = gpus * settings.down_window / _HOUR
    return max(settings.min_groups, int(max(0.0, left) // each))


def charge(state: PolicyState, groups: int, gpus: float, now: float) -> PolicyState:
    """Return the state with the GPU-hours of ``groups`` since it was last charged.

    A day begins at 0:00 UTC with nothing spent; what ran over midnight counts from there.
    """
    day = int(now // _DAY)
    begin = day * _DAY
    spent = state.spent if state.spent_day == day else 0.0
    since = now if state.spent_at is None else max(state.spent_at, begin)
    hours = max(0.0, now - since) / _HOUR
    return replace(state, spent_day=day, spent=spent + hours * groups * gpus, spent_at=now)


def step_limited(current: int, wanted: int, settings: AutoscalerSettings) -> int:
    """Return ``wanted``, or as near to it as one step goes."""
    return max(min(wanted, current + settings.max_step_up), current - settings.max_step_down)

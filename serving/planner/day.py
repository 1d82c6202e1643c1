"""GPU-hours of a day, with a fixed number of groups and with the autoscaler. Pure functions.

The load rises and falls once a day, as a raised cosine. The autoscaler's policy
(``autoscaler.policy``) decides from the latencies and rates that the performance model predicts for
the number of ready groups, without random fluctuations. Its targets are set so that the upper edge
of their tolerance band is the plan's objective, and it knows the capacity of a group.
"""

import math
from dataclasses import dataclass, field

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.policy import decide
from serving.autoscaler.signals import FleetCounts, Observation, Reading, Signal
from serving.planner.group import Group, Objective, Role, Served
from serving.planner.plans import Plan, Pool
from serving.planner.workload import Workload
from serving.settings import AutoscalerSettings

_DAY = 86_400.0
_INTERVAL = 60.0
"""Time between two decisions, seconds; longer than the default, because the model has no
fluctuations."""
_MIDNIGHT = 1_700_006_400.0
"""A midnight (UTC), at which the simulated day begins."""
_GRID = math.log(1.01)
_OVERLOADED = 60.0
"""Time to first token of an overloaded fleet, seconds; the policy clamps it."""


@dataclass(frozen=True, slots=True)
class Day:
    """The GPU-hours of a day."""

    fixed: float
    """GPU-hours with the planned number of groups all day."""
    autoscaled: float
    """GPU-hours with the autoscaler."""
    overloaded: float
    """Share of the autoscaled day during which the ready groups miss a latency objective."""


def day_of(plan: Plan, load: Workload, objective: Objective, *, low: float, startup: float) -> Day:
    """Return the GPU-hours of a day of ``plan``.

    Args:
        plan: The plan, for the busiest hour.
        load: Lengths of the requests.
        objective: Objectives of the plan.
        low: Rate at the quietest time, as a share of the planned rate, 0 to 1.
        startup: Time until a new group is ready, seconds.
    """
    scaled = [
        _autoscaled(pool, load, objective, peak=plan.rate, low=low, startup=startup)
        for pool in plan.pools
    ]
    return Day(
        fixed=plan.gpus * _DAY / 3600,
        autoscaled=sum(hours for hours, _ in scaled),
        overloaded=max(late for _, late in scaled),
    )


def rate_at(seconds: float, peak: float, low: float) -> float:
    """Return the rate ``seconds`` after the quietest time of the day."""
    wave = (1 - math.cos(2 * math.pi * seconds / _DAY)) / 2
    return peak * (low + (1 - low) * wave)


def _settings(pool: Pool, load: Workload, objective: Objective) -> AutoscalerSettings:
    plain = AutoscalerSettings()
    edge = plain.band_high
    tokens = load.output if pool.group.role is not Role.PREFILL else load.computed
    return AutoscalerSettings(
        max_groups=pool.count,
        interval=_INTERVAL,
        ttft_slo=objective.ttft / edge,
        itl_slo=objective.itl / edge,
        group_tokens_per_second=pool.capacity * tokens,
    )


def _autoscaled(
    pool: Pool, load: Workload, objective: Objective, *, peak: float, low: float, startup: float
) -> tuple[float, float]:
    """Return the GPU-hours of a day, and the share of it during which an objective is missed."""
    if pool.count == 1:
        return pool.gpus * _DAY / 3600, 0.0
    settings, state = _settings(pool, load, objective), PolicyState()
    model = _Grid(pool.group, load)
    tokens = load.output if pool.group.role is not Role.PREFILL else load.computed
    target = ready = min(pool.count, max(1, math.ceil(rate_at(0, peak, low) / pool.capacity)))
    starting: list[tuple[float, int]] = []
    hours = late = 0.0
    steps = round(_DAY / _INTERVAL)
    for step in range(steps):
        now = step * _INTERVAL
        ready += sum(groups for at, groups in starting if at <= now)
        starting = [(at, groups) for at, groups in starting if at > now]
        rate = rate_at(now, peak, low)
        served = model.serve(rate / ready)
        seen = _seen(pool, served, rate, tokens, target, ready)
        decision, state = decide(seen, state, _MIDNIGHT + now, settings, pool.variant.workers)
        if decision.target > target:
            starting.append((now + startup, decision.target - target))
        elif decision.target < target:
            starting = _fewer(starting, target - decision.target)
            ready = min(ready, decision.target - sum(groups for _, groups in starting))
        target = decision.target
        hours += target * pool.variant.workers * _INTERVAL / 3600
        late += served is None or not _within(served, objective)
    return hours, late / steps


def _fewer(starting: list[tuple[float, int]], groups: int) -> list[tuple[float, int]]:
    """Return the starting groups without the ``groups`` that were started last."""
    kept = []
    for at, number in reversed(starting):
        gone = min(number, groups)
        groups -= gone
        if number > gone:
            kept.append((at, number - gone))
    return kept[::-1]


def _within(served: Served, objective: Objective) -> bool:
    return served.ttft_p90 <= objective.ttft and served.itl_p90 <= objective.itl


@dataclass(slots=True)
class _Grid:
    """Caches the results of a group, for rates rounded up by at most 1 %."""

    group: Group
    load: Workload
    known: dict[int, Served | None] = field(default_factory=dict)

    def serve(self, rate: float) -> Served | None:
        """Return the group under a rate, or None if it cannot keep up."""
        power = math.ceil(math.log(rate) / _GRID)
        if power not in self.known:
            self.known[power] = self.group.serve(self.load, math.exp(power * _GRID))
        return self.known[power]


def _seen(
    pool: Pool, served: Served | None, rate: float, tokens: float, target: int, ready: int
) -> Observation:
    """Return the autoscaler's observation with ``ready`` groups under ``rate`` requests/s."""
    signals = {
        Signal.REQUEST_RATE: rate,
        Signal.TOKEN_RATE: min(rate, ready * pool.capacity) * tokens,
        Signal.QUEUE_TOKENS: 0.0,
        Signal.QUEUE_REQUESTS: 0.0,
        Signal.QUEUE_WAIT_P90: 0.0,
        Signal.INFLIGHT: 1.0,
        Signal.TTFT_P90: _OVERLOADED if served is None else served.ttft_p90,
        Signal.ITL_P90: 0.0 if served is None else served.itl_p90,
    }
    return Observation(
        target,
        FleetCounts(ready, 0),
        {signal: Reading(value) for signal, value in signals.items()},
    )

"""Limits that all pools share: GPUs, worker pods, and the day's GPU-hours. Pure functions.

Decisions are made for each pool independently. The numbers are then reduced until all shared limits
hold:

    1. If a limit is already exceeded, groups above min_groups are removed.
    2. Groups are added while the limits permit, first up to min_groups, then for models without a
       ready group, then for the pool with the smallest fraction of the groups that it wants.

A group that is being removed occupies its GPUs until the next decision. No pool gives up a group so
that another may grow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from serving.autoscaler.decision import Decision, VoteKind
from serving.autoscaler.pools import ScaledPool
from serving.settings import AutoscalerSettings

_HOUR = 3600.0
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class SharedLimit:
    """A limit on the sum over the groups of all pools."""

    reason: str
    """Name of the limited resource, shown in the reason of a decision."""
    capacity: float
    costs: Mapping[str, float]
    """Cost of one group of each pool."""
    spares_minimum: bool = False
    """Whether min_groups takes precedence over the limit."""

    def used(self, groups: Mapping[str, int]) -> float:
        """Return the cost of ``groups``, the number of groups by pool."""
        return sum(self.costs[pool] * number for pool, number in groups.items())


def shared_limits(
    settings: AutoscalerSettings, pools: Sequence[ScaledPool], spent: float
) -> tuple[SharedLimit, ...]:
    """Return the limits that are set.

    Args:
        settings: The settings group ``autoscaler``.
        pools: All pools.
        spent: GPU-hours used by all pools since 0:00 UTC.
    """
    gpus = {pool.key: pool.gpus for pool in pools}
    limits = []
    if settings.max_gpus is not None:
        limits.append(SharedLimit(f"max_gpus {settings.max_gpus:g}", settings.max_gpus, gpus))
    if settings.max_nodes is not None:
        nodes = {pool.key: float(pool.nodes) for pool in pools}
        limits.append(SharedLimit(f"max_nodes {settings.max_nodes}", settings.max_nodes, nodes))
    if settings.gpu_hours_per_day is not None:
        # As for one pool (limits.affordable_groups): a group that is started must be affordable for
        # one scale-down window.
        left = max(0.0, settings.gpu_hours_per_day - spent)
        limits.append(
            SharedLimit(
                f"{spent:.3g} of {settings.gpu_hours_per_day:g} GPU-hours",
                left * _HOUR / settings.down_window,
                gpus,
                spares_minimum=True,
            )
        )
    return tuple(limits)


def apply_limits(
    decisions: Mapping[str, Decision],
    pools: Sequence[ScaledPool],
    held: Mapping[str, int],
    limits: Sequence[SharedLimit],
) -> dict[str, Decision]:
    """Return the decisions with targets within the shared limits.

    Args:
        decisions: The decision of each pool whose number of groups is known.
        pools: All pools, in the order of the settings.
        held: Number of groups of each other pool, which does not change in this cycle.
        limits: The limits.
    """
    if not limits:
        return dict(decisions)
    known = [pool for pool in pools if pool.key in decisions]
    floors = {pool.key: pool.settings.min_groups for pool in known}
    granted = {key: min(each.current, each.target) for key, each in decisions.items()}
    because: dict[str, str] = {}
    for limit in limits:
        _shrink(limit, granted, floors, held, because)
    occupied = {key: each.current for key, each in decisions.items()} | dict(held)
    _grow(decisions, known, granted, floors, occupied, limits, because)
    return {
        key: each
        if granted[key] == each.target
        else replace(each, target=granted[key], reason=f"{because[key]}; {each.reason}")
        for key, each in decisions.items()
    }


def _shrink(
    limit: SharedLimit,
    granted: dict[str, int],
    floors: Mapping[str, int],
    held: Mapping[str, int],
    because: dict[str, str],
) -> None:
    """Remove groups one by one until the limit holds.

    Each group is taken from the pool that uses the most of the limited resource above its minimum.
    """
    while limit.used(granted) + limit.used(held) > limit.capacity + _EPSILON:
        spare = {
            key: (number - floors[key]) * limit.costs[key]
            for key, number in granted.items()
            if number > floors[key] and limit.costs[key] > 0
        }
        if not spare:
            return
        most = max(spare, key=lambda key: spare[key])
        granted[most] -= 1
        because[most] = limit.reason


def _grow(
    decisions: Mapping[str, Decision],
    pools: Sequence[ScaledPool],
    granted: dict[str, int],
    floors: Mapping[str, int],
    occupied: dict[str, int],
    limits: Sequence[SharedLimit],
    because: dict[str, str],
) -> None:
    waiting = {
        pool.key: decisions[pool.key].target - granted[pool.key]
        for pool in pools
        if pool.key not in because and decisions[pool.key].target > granted[pool.key]
    }
    order = {pool.key: number for number, pool in enumerate(pools)}

    def urgency(key: str) -> tuple[bool, bool, float, int]:
        needed = granted[key] < floors[key]
        return (
            not needed,
            not _wakes(decisions[key]),
            granted[key] / decisions[key].target,
            order[key],
        )

    while waiting:
        key = min(waiting, key=urgency)
        needed = granted[key] < floors[key]
        full = next(
            (
                limit.reason
                for limit in limits
                if limit.costs[key] > 0
                and not (needed and limit.spares_minimum)
                and limit.used(occupied) + limit.costs[key] > limit.capacity + _EPSILON
            ),
            None,
        )
        if full is not None:
            because[key] = full
            del waiting[key]
            continue
        granted[key] += 1
        occupied[key] += 1
        waiting[key] -= 1
        if not waiting[key]:
            del waiting[key]


def _wakes(decision: Decision) -> bool:
    """Return whether requests are parked for the pool."""
    return any(vote.rule == "parked" and vote.kind is VoteKind.VOTE for vote in decision.votes)

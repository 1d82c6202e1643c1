"""Prices of tokens under a plan. Pure functions.

All GPU-hours are paid for, including idle ones. The cost of a mixed group is split between prompts
and outputs by the time that its steps spend on each. Cached tokens bear the part of a prompt's cost
that would be saved without them: later tokens attend to them, and MLA expands them.
"""

from dataclasses import dataclass

from serving.planner.group import Role
from serving.planner.plans import Plan, Pool
from serving.planner.roofline import Batch
from serving.planner.workload import Workload

_HOUR = 3600.0
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Cost:
    """Prices in dollars."""

    hour: float
    """Cost of all GPUs per hour."""
    input: float
    """Price of one million computed prompt tokens."""
    cached: float | None
    """Price of one million prompt tokens from the cache. None if no token is cached."""
    output: float
    """Price of one million output tokens."""
    request: float
    """Price of an average request: its tokens at the prices above."""


def cost_of(plan: Plan, load: Workload, price: float) -> Cost:
    """Return the cost of a plan at its planned rate.

    Args:
        plan: The plan.
        load: Lengths of the requests; the plan's rate applies.
        price: Dollars per GPU-hour.
    """
    requests = plan.rate * _HOUR
    hour = plan.gpus * price
    prompts = sum(_prompt_share(pool) * pool.gpus for pool in plan.pools) * price
    reused = _cached_share(plan.pools[0], load) if load.reused else 0.0
    return Cost(
        hour=hour,
        input=prompts * (1 - reused) / (requests * load.computed) * _MILLION,
        cached=prompts * reused / (requests * load.reused) * _MILLION if load.reused else None,
        output=(hour - prompts) / (requests * load.output) * _MILLION,
        request=hour / requests,
    )


def _prompt_share(pool: Pool) -> float:
    """Return the share of a pool's cost that prompts bear."""
    return 0.0 if pool.group.role is Role.DECODE else pool.served.prefill_share


def _cached_share(pool: Pool, load: Workload) -> float:
    """Return the share of a prompt's time that is due to its cached tokens."""
    steps = pool.group.steps
    own = Batch(prompt=load.computed, attended=load.reused + load.computed / 2, cached=load.reused)
    whole = steps.step(own).seconds
    without = steps.prefill(load.computed, load.computed / 2).seconds
    return max(0.0, 1 - without / whole)

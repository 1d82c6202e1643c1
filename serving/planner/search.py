"""Searches the layouts of a model on given hardware, and ranks them. Pure functions.

For each group size, finds the best settings and the number of groups that the rate needs; without a
rate, the highest rate that the given nodes serve. Groups are independent: adding one never slows
down the others.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from serving.errors import InvalidRequest
from serving.planner.constants import NETWORK
from serving.planner.gpu_memory import kv_bytes_per_token
from serving.planner.group import Role
from serving.planner.plans import MOST_GROUPS, Mode, Plan, Pool, Question
from serving.planner.refusals import possible, reason, wanted
from serving.planner.shapes import Variant, sizes, variants

_SLACK = 1 - 1e-3
"""Share of its capacity at which a full group is evaluated: bisection ends just below it."""
_WORTH = 2
"""Groups are skipped if they have more than this many times the GPUs of the cheapest pool found."""

Progress = Callable[[int, int], None]
"""Called with the number of evaluated sizes and the total number of sizes."""


def search(question: Question, progress: Progress = lambda _done, _all: None) -> list[Plan]:
    """Return the plans that meet the objectives, best first.

    With a rate, the cheapest plan comes first; without one, the plan with the highest rate. Ties
    are ordered by time between tokens.

    Raises:
        InvalidRequest: The model does not fit, or no layout meets the objectives.
    """
    allowed = sizes(question.gpu, question.model, question.most_gpus)
    question = replace(question, choices=possible(question, allowed))
    roles = [Role.MIXED] if Mode.MIXED in question.modes else []
    if Mode.DISAGGREGATED in question.modes:
        roles += [Role.PREFILL, Role.DECODE]
    best: dict[Role, list[tuple[Variant, float]]] = {role: [] for role in roles}
    done, total = 0, len(allowed) * len(roles)
    fitting = False
    for role in roles:
        cheapest = math.inf
        for workers in allowed:
            done += 1
            progress(done, total)
            if workers not in wanted(question.choices, role, allowed):
                continue
            if workers > _WORTH * cheapest:
                continue
            some, found = _best(question, role, workers)
            fitting = fitting or some
            if found is not None:
                best[role].append(found)
                if not question.saturate:
                    needed = math.ceil(question.load.rate / (found[1] * _SLACK))
                    cheapest = min(cheapest, needed * workers)
    plans = list(_mixed(question, best.get(Role.MIXED, [])))
    plans += _disaggregated(question, best.get(Role.PREFILL, []), best.get(Role.DECODE, []))
    if not plans:
        raise InvalidRequest(reason(question, allowed, fitting=fitting))
    if question.saturate:
        return sorted(plans, key=lambda plan: (-plan.rate, plan.gpus, plan.itl))
    return sorted(plans, key=lambda plan: (plan.gpus, plan.itl))


def _best(
    question: Question, role: Role, workers: int
) -> tuple[bool, tuple[Variant, float] | None]:
    """Return whether groups of this size fit, and the one with the highest capacity."""
    load = question.load
    found = list(
        variants(
            question.model, question.gpu, question.known, role, workers, load.context,
            question.choices,
        )
    )  # fmt: skip
    bounds = sorted(
        ((each.group.bound(load), -number) for number, each in enumerate(found)), reverse=True
    )
    best: tuple[Variant, float] | None = None
    for bound, number in bounds:
        if best is not None and bound <= best[1]:
            break
        capacity = found[-number].group.capacity(load, question.objective)
        if capacity > 0 and (best is None or capacity > best[1] * 1.001):
            best = found[-number], capacity
    return bool(found), best


def _mixed(question: Question, found: Sequence[tuple[Variant, float]]) -> Iterator[Plan]:
    for variant, capacity in found:
        count = _groups(question, capacity, variant.workers)
        if not count:
            continue
        rate = count * capacity * _SLACK if question.saturate else question.load.rate
        pool = _pool(question, variant, capacity, count, rate)
        if pool is None:
            continue
        at = pool.served
        plan = Plan(Mode.MIXED, (pool,), rate, at.ttft, at.ttft_p90, at.itl, at.itl_p90)
        if _affordable(question, plan):
            yield plan


def _groups(question: Question, capacity: float, workers: int) -> int:
    """Return the number of groups of a pool; 0 if there are too few GPUs or too many groups."""
    possible = min(question.most_gpus // workers, MOST_GROUPS)
    if question.saturate:
        return possible
    needed = math.ceil(question.load.rate / (capacity * _SLACK))
    return needed if needed <= possible else 0


def _disaggregated(
    question: Question,
    prefill: Sequence[tuple[Variant, float]],
    decode: Sequence[tuple[Variant, float]],
) -> Iterator[Plan]:
    for first in prefill:
        for second in decode:
            counts = _split(question, first, second)
            if counts is None:
                continue
            most = min(counts[0] * first[1], counts[1] * second[1]) * _SLACK
            rate = most if question.saturate else question.load.rate
            pools = (
                _pool(question, *first, counts[0], rate),
                _pool(question, *second, counts[1], rate),
            )
            if pools[0] is None or pools[1] is None:
                continue
            plan = _joined(question, pools[0], pools[1], rate)
            late = plan.ttft_p90 > question.objective.ttft
            if not late and _affordable(question, plan):
                yield plan


def _split(
    question: Question, prefill: tuple[Variant, float], decode: tuple[Variant, float]
) -> tuple[int, int] | None:
    """Return the numbers of prefill and decode groups; None if too few GPUs or too many groups."""
    workers = prefill[0].workers, decode[0].workers
    most = question.most_gpus
    if question.saturate:
        best = max(
            (
                (min(count * prefill[1], rest * decode[1]), -count, count, rest)
                for count in range(1, min((most - workers[1]) // workers[0], MOST_GROUPS) + 1)
                if (rest := min((most - count * workers[0]) // workers[1], MOST_GROUPS))
            ),
            default=None,
        )
        return None if best is None else best[2:]
    rate = question.load.rate
    counts = math.ceil(rate / (prefill[1] * _SLACK)), math.ceil(rate / (decode[1] * _SLACK))
    fits = counts[0] * workers[0] + counts[1] * workers[1] <= most and max(counts) <= MOST_GROUPS
    return counts if fits else None


def _pool(
    question: Question, variant: Variant, capacity: float, count: int, rate: float
) -> Pool | None:
    load, group = question.load, variant.group
    served = group.serve(load, rate / count)
    if served is None:
        return None
    limit = group.limit(load, capacity, question.objective)
    return Pool(variant, count, capacity, served, limit)


def _joined(question: Question, prefill: Pool, decode: Pool, rate: float) -> Plan:
    """Return the plan of two pools; a prompt's KV cache is sent from one to the other."""
    model, gpu = question.model, question.gpu
    size = question.load.prompt * kv_bytes_per_token(model, value_bytes=max(2, model.weight_bytes))
    more = size / (gpu.network * NETWORK) + decode.served.itl * decode.group.accepted
    first, then = prefill.served, decode.served
    return Plan(
        Mode.DISAGGREGATED,
        (prefill, decode),
        rate,
        first.ttft + more,
        first.ttft_p90 + more,
        then.itl,
        then.itl_p90,
    )


def _affordable(question: Question, plan: Plan) -> bool:
    """Return whether the price is within the objective if output tokens bear all costs."""
    tokens = plan.rate * question.load.output * 3600
    return plan.gpus * question.gpu.price / tokens * 1e6 <= question.objective.price

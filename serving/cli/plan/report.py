"""The output of ``moe-serving plan``: tables or JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from serving.cli.plan.calibration_file import as_json as calibration_json
from serving.cli.plan.measure import Measured
from serving.planner.anchors import ANCHORS, exchanges
from serving.planner.cost import Cost
from serving.planner.day import Day
from serving.planner.gpu_memory import ModelFigures
from serving.planner.group import Role
from serving.planner.plans import Plan, Pool, Question

NOTICE = (
    "A model, not a measurement: it computes steps from the GPUs' data sheets, with constants "
    "fitted to published figures. Of nine figures outside the fit, eight are within 14 % "
    "and one within 21 % (deploy/docs/planner.md)."
)
_CALIBRATED = "A model whose constants were fitted to a running deployment ({source})."
_LETTERS = {Role.MIXED: "", Role.PREFILL: "P ", Role.DECODE: "D "}
_UNITS = {
    "times": "seconds",
    "sizes": "bytes",
    "lengths": "tokens",
    "rates": "requests/s",
    "shares": "0 to 1",
    "prices": "US dollars; gpu.price is that of a GPU-hour",
}
"""Units of the numbers in the JSON."""
_GB = 1e9
_WIDTH = 140


@dataclass(frozen=True, slots=True)
class Answer:
    """A plan with its cost and the GPU-hours of its day."""

    plan: Plan
    cost: Cost
    day: Day


def notice(measured: Measured | None) -> str:
    """Return the notice about the accuracy of the figures."""
    return NOTICE if measured is None else _CALIBRATED.format(source=measured.source)


# -- as text ----------------------------------------------------------------------------------


def show(question: Question, answers: Sequence[Answer], measured: Measured | None) -> None:
    """Print the plans, and details of the best one."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(_heading(question), highlight=False, markup=False)
    console.print(notice(measured), style="yellow", highlight=False, markup=False)
    if measured is not None:
        console.print(_errors(measured), highlight=False, markup=False)
    console.print()
    console.print(_performance(question, answers))
    console.print()
    console.print(_prices(answers))
    for line in _details(question, answers[0]):
        console.print(line, highlight=False, markup=False)


def _heading(question: Question) -> str:
    load, gpu, objective = question.load, question.gpu, question.objective
    rate = "the highest rate" if question.saturate else f"{load.rate:.4g} requests/s"
    nodes = "" if question.nodes is None else f"{question.nodes} nodes of "
    return (
        f"{question.model_name} on {nodes}{gpu.per_node} {gpu.name} "
        f"(${gpu.price:g} a GPU-hour: {gpu.price_source}): {rate}, prompts of "
        f"{load.prompt:,.0f} tokens ({load.cached:.0%} cached), outputs of {load.output:,.0f}; "
        f"TTFT p90 <= {objective.ttft:g} s, ITL <= {objective.itl * 1e3:g} ms"
    )


def _errors(measured: Measured) -> str:
    parts = [
        f"{one.name} {one.predicted:.4g} predicted, {one.seen:.4g} seen ({one.error:+.0%})"
        for one in measured.compared
    ]
    return (
        f"Fitted to {measured.found.loads} loads, ITL within {measured.found.residual:.0%} (root "
        f"mean square). On a load outside the fit, {measured.check}: {'; '.join(parts)}."
    )


def _grid(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("layout", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _performance(question: Question, answers: Sequence[Answer]) -> Table:
    load, node = question.load, question.gpu.per_node
    table = _grid(
        "GPUs", "req/s", "at most", "TTFT p90", "ITL p90", "in tok/s GPU", "out tok/s GPU",
        "out tok/s node", "limited by",
    )  # fmt: skip
    for answer in answers:
        plan = answer.plan
        each = plan.rate / plan.gpus
        table.add_row(
            short(plan),
            str(plan.gpus),
            f"{plan.rate:.4g}",
            f"{plan.capacity:.4g}",
            f"{plan.ttft_p90:.2f} s",
            f"{plan.itl_p90 * 1e3:.0f} ms",
            f"{each * load.prompt:,.0f}",
            f"{each * load.output:,.0f}",
            f"{each * load.output * node:,.0f}",
            ", ".join(f"{_LETTERS[pool.group.role]}{pool.limit}" for pool in plan.pools),
        )
    return table


def _prices(answers: Sequence[Answer]) -> Table:
    table = _grid("$ per hour", "GPU-h per day", "scaled", "$/M input", "cached", "output")
    for answer in answers:
        cost, day = answer.cost, answer.day
        table.add_row(
            short(answer.plan),
            f"{cost.hour:,.2f}",
            f"{day.fixed:,.0f}",
            f"{day.autoscaled:,.0f}",
            f"{cost.input:.3g}",
            "–" if cost.cached is None else f"{cost.cached:.3g}",
            f"{cost.output:.3g}",
        )
    return table


def short(plan: Plan) -> str:
    """Return a plan's layout in short form: ``2 x EP16`` or ``P 5 x EP16 + D 1 x EP96``."""
    return " + ".join(
        f"{_LETTERS[pool.group.role]}{pool.count} x EP{pool.variant.workers}"
        + (f" TP{pool.group.steps.tensor}" if pool.group.steps.tensor > 1 else "")
        + (" MTP" if pool.group.drafts else "")
        for pool in plan.pools
    )


def _details(question: Question, answer: Answer) -> list[str]:
    """Return lines about the best plan."""
    lines = ["", f"Best: {short(answer.plan)}, ${answer.cost.request:.3g} a request"]
    for pool in answer.plan.pools:
        memory, group = pool.variant.memory, pool.group
        steps = group.steps
        most = f"{group.chunk} prompt tokens per rank"
        if group.role is Role.MIXED:
            most = f"{int(group.most_sequences)} sequences and {most}"
        elif group.role is Role.DECODE:
            most = f"{int(group.most_sequences)} sequences per rank"
        lines.append(
            f"  {group.role}: {_many(pool.count, 'group')} of {_many(steps.data, 'rank')}, each of "
            f"{_many(steps.tensor, 'GPU')}; "
            f"{_many(ranks_per_pod(question, pool), 'rank')} per pod; at most {most} in a step; "
            f"{pool.served.sequences:.0f} sequences per rank at this rate"
        )
        lines.append(
            f"  memory of a GPU: {memory.capacity / _GB:.1f} GB usable = experts "
            f"{memory.experts / _GB:.1f}, other weights "
            f"{(memory.weights - memory.experts) / _GB:.1f}, reserve {memory.reserve / _GB:.1f}, "
            f"KV cache {memory.kv_room / _GB:.1f} for {memory.kv_tokens:,} tokens per rank"
        )
    if answer.day.overloaded:
        lines.append(
            f"  the autoscaled fleet misses a latency objective during {answer.day.overloaded:.1%} "
            "of the day, while groups start"
        )
    return lines


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def ranks_per_pod(question: Question, pool: Pool) -> int:
    """Return the number of ranks in a pod, i.e. on a node."""
    mine = min(pool.variant.workers, question.gpu.per_node)
    return max(1, mine // pool.group.steps.tensor)


def show_errors(model: ModelFigures) -> None:
    """Print the performance model's errors on published measurements of ``model``."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("measurement", "operating point", "source"):
        table.add_column(head, overflow="fold")
    for head in ("published", "predicted", "error", "fitted"):
        table.add_column(head, justify="right", no_wrap=True)
    for anchor in ANCHORS:
        table.add_row(
            f"{anchor.name}, {anchor.unit}",
            anchor.setup,
            anchor.source,
            f"{anchor.published:,g}",
            f"{anchor.predict(model):,.4g}",
            f"{anchor.error(model):+.1%}",
            anchor.fitted or "–",
        )
    for name, published, predicted in exchanges(model):
        error = f"{predicted / published - 1:+.1%}"
        cells = f"{published * 1e6:.0f}", f"{predicted * 1e6:.0f}", error
        table.add_row(f"{name}, µs", "H800, 128 tokens per GPU", "DeepEP", *cells, "–")
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)


# -- as JSON ----------------------------------------------------------------------------------


def as_json(
    question: Question, answers: Sequence[Answer], measured: Measured | None
) -> dict[str, Any]:
    """Return everything as one JSON object; times in seconds, sizes in bytes."""
    price = question.objective.price
    return {
        "notice": notice(measured),
        "model": question.model_name,
        "gpu": asdict(question.gpu),
        "load": {**asdict(question.load), "rate": answers[0].plan.rate},
        "units": _UNITS,
        "objective": {
            "ttft": question.objective.ttft,
            "itl": question.objective.itl,
            "million_output": None if math.isinf(price) else price,
        },
        "constants": asdict(question.known),
        "calibration": None if measured is None else calibration_json(measured),
        "plans": [_plan_json(question, answer) for answer in answers],
    }


def _plan_json(question: Question, answer: Answer) -> dict[str, Any]:
    plan, load = answer.plan, question.load
    return {
        "layout": short(plan),
        "mode": plan.mode,
        "gpus": plan.gpus,
        "nodes": -(-plan.gpus // question.gpu.per_node),
        "rate": plan.rate,
        "capacity": plan.capacity,
        "ttft": {"mean": plan.ttft, "p90": plan.ttft_p90},
        "itl": {"mean": plan.itl, "p90": plan.itl_p90},
        "tokens_per_second_per_gpu": {
            "input": plan.rate * load.prompt / plan.gpus,
            "output": plan.rate * load.output / plan.gpus,
        },
        "gpu_hours_a_day": asdict(answer.day),
        "dollars": {
            "hour": answer.cost.hour,
            "request": answer.cost.request,
            "million_input": answer.cost.input,
            "million_cached": answer.cost.cached,
            "million_output": answer.cost.output,
        },
        "pools": [_pool_json(question, pool) for pool in plan.pools],
    }


def _pool_json(question: Question, pool: Pool) -> dict[str, Any]:
    group, memory = pool.group, pool.variant.memory
    return {
        "role": group.role,
        "groups": pool.count,
        "ranks": group.steps.data,
        "tensor_parallel": group.steps.tensor,
        "ranks_per_pod": ranks_per_pod(question, pool),
        "max_num_batched_tokens": group.chunk,
        "max_num_seqs": int(group.most_sequences),
        "drafted_tokens": group.drafts,
        "group_capacity": pool.capacity,
        "sequences_per_rank": pool.served.sequences,
        "prefill_utilisation": pool.served.load,
        "limited_by": pool.limit,
        "memory": {**asdict(memory), "kv_room": memory.kv_room, "kv_tokens": memory.kv_tokens},
    }

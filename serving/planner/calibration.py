"""Constants of a running deployment, fitted to closed-loop loads. Pure functions.

The mean time between tokens of each load is linear in three unknowns: the overhead of a step, a
factor on the roofline of decoding, and one on that of prompts. They are fitted by least squares on
the relative errors; a negative value is set to zero.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serving.errors import InvalidRequest
from serving.planner.constants import Constants
from serving.planner.group import Group
from serving.planner.roofline import Batch, StepModel
from serving.planner.workload import Workload

_UNKNOWNS = 3
_SINGULAR = 1e-12


@dataclass(frozen=True, slots=True)
class Observed:
    """Results of one load; times are means in seconds."""

    prompt: float
    """Number of prompt tokens of a request."""
    output: float
    """Number of output tokens of a request."""
    rate: float
    """Rate of completed requests, requests/s."""
    ttft: float
    itl: float
    """Time between tokens."""
    groups: int = 1
    """Number of groups that shared the load."""

    @property
    def latency(self) -> float:
        """Duration of a request, seconds."""
        return self.ttft + self.itl * (self.output - 1)

    @property
    def load(self) -> Workload:
        """The load as a workload of the planner."""
        return Workload(self.rate, self.prompt, self.output)


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted constants and their error on the loads to which they were fitted."""

    known: Constants
    residual: float
    """Root mean square of the relative errors of the time between tokens."""
    loads: int


def fit(group: Group, observed: Sequence[Observed]) -> Fit:
    """Fit the constants of a group to its loads.

    Args:
        group: The running group, with arbitrary constants; its factors are replaced.
        observed: Loads with different numbers of streams and lengths of prompts.

    Raises:
        InvalidRequest: There are too few loads, or their times are implausible.
    """
    usable = [one for one in observed if one.itl > 0 and one.rate > 0 and one.output > 1]
    if len(usable) < _UNKNOWNS:
        raise InvalidRequest(
            f"only {len(usable)} loads with results, {_UNKNOWNS} are needed: calibrate for longer"
        )
    plain = replace(
        group.steps.constants,
        layer_seconds=0.0,
        engine=1.0,
        decode=1.0,
        prefill=1.0,
        first_token_seconds=0.0,
        first_token_per_sequence=0.0,
    )
    steps = replace(group.steps, constants=plain)
    rows = [_row(steps, group, one) for one in usable]
    found, residual = _least_squares(rows, [one.itl * group.accepted for one in usable])
    if found[0] + found[1] <= 0:
        raise InvalidRequest("the measured steps take no time: calibrate with more streams")
    known = replace(
        plain,
        layer_seconds=found[0] / steps.model.num_hidden_layers,
        decode=found[1],
        prefill=found[2],
    )
    fitted = replace(group, steps=replace(steps, constants=known))
    alone, each = _first_token(fitted, usable)
    known = replace(known, first_token_seconds=alone, first_token_per_sequence=each)
    return Fit(known, residual, len(usable))


def _row(steps: StepModel, group: Group, one: Observed) -> tuple[float, float, float]:
    """Return the coefficients of the three unknowns in the mean step of a load."""
    step = one.itl * group.accepted
    each = one.rate / one.groups / steps.data
    sequences = max(1.0, each * one.output * one.itl)
    arriving = each * one.prompt * step
    at_once = min(group.chunk, max(one.prompt, arriving))
    shared = 1 - (1 - min(1.0, arriving / at_once)) ** steps.data
    alone = Batch(sequences, one.load.context, group.drafts)
    both = replace(
        alone, prompt=at_once, attended=one.prompt / 2, mean_prompt=arriving / max(shared, 1e-9)
    )
    decode = steps.step(alone).seconds
    return 1.0, decode, (steps.step(both).seconds - decode) * shared


def _first_token(group: Group, observed: Sequence[Observed]) -> tuple[float, float]:
    """Return the time that client and router add to the first token: seconds, seconds per sequence.

    The two values are fitted by least squares to the part that the model does not explain.
    """
    rows: list[tuple[float, ...]] = []
    extra: list[float] = []
    for one in observed:
        rate = one.rate / one.groups
        served = group.serve(one.load, rate)
        if served is not None and one.ttft > served.ttft:
            rows.append((1.0, rate * one.output * one.itl))
            extra.append(one.ttft - served.ttft)
    if not rows:
        return 0.0, 0.0
    found, _ = _least_squares(rows, extra)
    return found[0], found[1]


def _least_squares(
    rows: Sequence[tuple[float, ...]], values: Sequence[float]
) -> tuple[list[float], float]:
    """Return the non-negative solution with the smallest relative error, and that error.

    Tries each subset of the three columns.
    """
    width = len(rows[0])
    best: tuple[float, list[float]] | None = None
    for size in range(width, 0, -1):
        for columns in itertools.combinations(range(width), size):
            some = _solve(
                [[row[c] / v for c in columns] for row, v in zip(rows, values, strict=True)]
            )
            if some is None or min(some) < 0:
                continue
            found = [0.0] * width
            for column, value in zip(columns, some, strict=True):
                found[column] = value
            error = _error(rows, values, found)
            if best is None or error < best[0] * (1 - 1e-9):
                best = error, found
    if best is None:
        raise InvalidRequest("the measured times contradict each other: calibrate for longer")
    return best[1], best[0]


def _error(
    rows: Sequence[tuple[float, ...]], values: Sequence[float], found: Sequence[float]
) -> float:
    errors = [
        sum(a * b for a, b in zip(row, found, strict=True)) / value - 1
        for row, value in zip(rows, values, strict=True)
    ]
    return float((sum(error**2 for error in errors) / len(errors)) ** 0.5)


def _solve(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """Return the least-squares solution of ``rows @ x = 1``, or None if it is not unique."""
    width = len(rows[0])
    scale = [max(abs(row[c]) for row in rows) or 1.0 for c in range(width)]
    scaled = [[row[c] / scale[c] for c in range(width)] for row in rows]
    table = [
        [sum(row[a] * row[b] for row in scaled) for b in range(width)]
        + [sum(row[a] for row in scaled)]
        for a in range(width)
    ]
    for at in range(width):  # Gauss-Jordan with pivoting
        pivot = max(range(at, width), key=lambda row: abs(table[row][at]))
        if abs(table[pivot][at]) < _SINGULAR:
            return None
        table[at], table[pivot] = table[pivot], table[at]
        for row in range(width):
            if row != at:
                ratio = table[row][at] / table[at][at]
                table[row] = [a - ratio * b for a, b in zip(table[row], table[at], strict=True)]
    return [table[at][width] / table[at][at] / scale[at] for at in range(width)]

"""Fits a group's step to the records of a real run, and says how well it fits. Pure.

A request's time from its first token to its last is the sum of its group's steps meanwhile. So

    (end - first) / steps = base + per_sequence * sequences + per_prompt_token * prompt tokens

with the mean number of sequences that its rank ran, and the prompt tokens a step that came in
between: both are in the records of the other requests. Least squares over all requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.record import Record
from loadtest.simulation.calibration import StepTime
from serving.errors import InvalidRequest

_LEAST_REQUESTS = 8
_ROUNDS = 50
_CLOSE = 1e-4
"""Seconds below which a deviation counts as none."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """A line and how far its points are off."""

    step: StepTime
    residual: float
    """Root mean square error of a request's mean step over the mean of all."""
    requests: int


def fit_step(records: Sequence[Record], ranks: int) -> Fit:
    """Return the step's line; a slope that comes out below 0 is taken out.

    Args:
        records: of one group, which served nobody else.
        ranks: of the group. Its requests are taken to be spread over them evenly.

    Raises:
        InvalidRequest: there is too little to fit, or it makes no sense.
    """
    done = [r for r in records if r.ok and r.first is not None and r.output_tokens > 1]
    if len(done) < _LEAST_REQUESTS:
        raise InvalidRequest(f"only {len(done)} answers to fit: load for longer")
    first = np.array([r.first for r in done], dtype=np.float64)
    end = np.array([r.end for r in done], dtype=np.float64)
    steps = np.array([r.output_tokens - 1 for r in done], dtype=np.float64)
    prompts = np.array([r.prompt_tokens for r in done], dtype=np.float64)
    took = np.maximum(end - first, 1e-9)
    # [i, j]: seconds for which j's answer ran while i's did.
    both = np.minimum(end[:, None], end) - np.maximum(first[:, None], first)
    running = (np.maximum(both, 0.0) / took[:, None]).sum(axis=1)
    # [i, j]: whether j's prompt was computed while i's answer ran.
    inside = (first > first[:, None]) & (first <= end[:, None])
    table = np.stack(
        [np.ones_like(steps), (running - 1) / ranks + 1, (inside @ prompts) / steps], axis=1
    )
    slopes = _least_squares(table, took / steps)
    if slopes[0] <= 0:
        raise InvalidRequest("steps came out as taking no time: load with fewer streams too")
    error = np.sqrt(np.mean((table @ slopes - took / steps) ** 2)) / np.mean(took / steps)
    return Fit(StepTime(*(float(slope) for slope in slopes)), float(error), len(done))


def fit_overhead(extra: Sequence[float], others: Sequence[int]) -> tuple[float, float]:
    """Return what client and router add to the first token: alone, and for each other request.

    Least absolute deviations: a few requests wait for reasons of their own (a burst at the
    beginning, another process), and would be paid for by all.

    Args:
        extra: seconds from due to first token that the model does not explain, one a request.
        others: requests that were in flight when it came.
    """
    table = np.stack([np.ones(len(extra)), np.array(others, dtype=np.float64)], axis=1)
    values = np.array(extra, dtype=np.float64)
    weights = np.ones(len(values))
    for _ in range(_ROUNDS):  # iteratively reweighted least squares
        root = np.sqrt(weights)
        alone, each = _least_squares(table * root[:, None], values * root)
        weights = 1 / np.maximum(np.abs(table @ (alone, each) - values), _CLOSE)
    return max(float(alone), 0.0), float(each)


def _least_squares(table: Floats, values: Floats) -> Floats:
    """Solve, without negative slopes; the first column's may be."""
    columns = list(range(table.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(table[:, columns], values, rcond=None)
        slopes = np.zeros(table.shape[1])
        slopes[columns] = found
        worst = min(columns[1:], key=lambda column: float(slopes[column]), default=0)
        if worst == 0 or slopes[worst] >= 0:
            return slopes
        columns.remove(worst)

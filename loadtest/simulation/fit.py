"""Fits the step time of a group to the records of a real run. Pure.

The time of a request from its first to its last token is the sum of its group's steps, so

    (end - first) / steps = base + per_sequence * sequences + per_prompt_token * prompt tokens

where the mean numbers of sequences on its rank and of prompt tokens per step during this time
follow from the records of the other requests. The terms are fitted by ordinary least squares over
all requests.
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
"""Lower bound of the deviations that determine weights, seconds."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted step time and its error."""

    step: StepTime
    residual: float
    """Root mean square error of the requests' mean step, divided by the mean."""
    requests: int


def fit_step(records: Sequence[Record], ranks: int) -> Fit:
    """Fit the step time; terms with a negative slope are dropped.

    Args:
        records: All requests of one group.
        ranks: Number of ranks of the group; requests are assumed to be spread evenly over them.

    Raises:
        InvalidRequest: Too few requests, or an implausible result.
    """
    done = [r for r in records if r.ok and r.first is not None and r.output_tokens > 1]
    if len(done) < _LEAST_REQUESTS:
        raise InvalidRequest(
            f"only {len(done)} answers, too few for a fit: run the load for longer"
        )
    first = np.array([r.first for r in done], dtype=np.float64)
    end = np.array([r.end for r in done], dtype=np.float64)
    steps = np.array([r.output_tokens - 1 for r in done], dtype=np.float64)
    prompts = np.array([r.prompt_tokens for r in done], dtype=np.float64)
    took = np.maximum(end - first, 1e-9)
    # both [requests, requests]: seconds for which responses i and j overlap.
    both = np.minimum(end[:, None], end) - np.maximum(first[:, None], first)
    running = (np.maximum(both, 0.0) / took[:, None]).sum(axis=1)
    # inside [requests, requests]: whether prompt j was computed during response i.
    inside = (first > first[:, None]) & (first <= end[:, None])
    table = np.stack(
        [np.ones_like(steps), (running - 1) / ranks + 1, (inside @ prompts) / steps], axis=1
    )
    slopes = _least_squares(table, took / steps)
    if slopes[0] <= 0:
        raise InvalidRequest("the fitted step time is 0: measure with fewer streams as well")
    error = np.sqrt(np.mean((table @ slopes - took / steps) ** 2)) / np.mean(took / steps)
    return Fit(StepTime(*(float(slope) for slope in slopes)), float(error), len(done))


def fit_overhead(extra: Sequence[float], others: Sequence[int]) -> tuple[float, float]:
    """Fit the time that client and router add to the first token.

    Uses least absolute deviations because they are robust against outliers (an initial burst,
    another process).

    Args:
        extra: Unexplained seconds of each request's time to first token.
        others: Number of other requests in flight when each request was due.

    Returns:
        Seconds for a request alone, and additional seconds for each other request.
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
    """Solve least squares for ``table`` [rows, columns]; only the first slope may be negative."""
    columns = list(range(table.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(table[:, columns], values, rcond=None)
        slopes = np.zeros(table.shape[1])
        slopes[columns] = found
        worst = min(columns[1:], key=lambda column: float(slopes[column]), default=0)
        if worst == 0 or slopes[worst] >= 0:
            return slopes
        columns.remove(worst)

"""The load to plan for: rate, lengths and the cached share of the prompts. Pure functions.

Lengths are log-normal, given by their mean and their squared coefficient of variation (variance
divided by the square of the mean; 0 if all are equal).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import InvalidRequest

Z90 = 1.2815515655446004
"""90th percentile of the standard normal distribution."""
_LEAST_RATE, _MOST_RATE, _MOST_TOKENS = 1e-4, 1e6, 1e7
_MOST_RATIO = math.exp(Z90**2 / 2)
"""The largest ratio of 90th percentile to mean that a log-normal distribution has, 2.27."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A load during its busiest hour."""

    rate: float
    """Request rate, requests/s."""
    prompt: float
    """Mean length of a prompt, tokens."""
    output: float
    """Mean length of an output, tokens."""
    cached: float = 0.0
    """Share of the prompts' tokens that the prefix cache holds, from 0 to below 1."""
    prompt_spread: float = 0.0
    """Squared coefficient of variation of the prompts' lengths."""
    output_spread: float = 0.0
    """Squared coefficient of variation of the outputs' lengths."""

    def __post_init__(self) -> None:
        """Check the figures.

        Raises:
            InvalidRequest: A figure is not a number, or is out of range.
        """
        _within("the rate", self.rate, _MOST_RATE, "requests/s", least=_LEAST_RATE)
        _within("the prompts' mean length", self.prompt, _MOST_TOKENS, "tokens", least=1)
        _within("the outputs' mean length", self.output, _MOST_TOKENS, "tokens", least=1)
        if not 0 <= self.cached < 1:
            raise InvalidRequest(
                f"the cached share of the prompts is {self.cached:g}; it must be from 0 to below "
                "1, because a prompt's last token is always computed"
            )
        for what, spread in (("prompts", self.prompt_spread), ("outputs", self.output_spread)):
            if not 0 <= spread < math.inf:
                raise InvalidRequest(f"the spread of the {what}' lengths is {spread:g}")

    @property
    def computed(self) -> float:
        """Mean number of prompt tokens that are computed, at least one."""
        return max(self.prompt * (1 - self.cached), 1.0)

    @property
    def reused(self) -> float:
        """Mean number of prompt tokens from the prefix cache."""
        return self.prompt - self.computed

    @property
    def context(self) -> float:
        """Mean length of a sequence per decoded token; long outputs weigh more."""
        return self.prompt + self.output * (1 + self.output_spread) / 2

    @property
    def long_prompt(self) -> float:
        """Ratio of the prompts' 90th percentile to their mean."""
        return p90_ratio(self.prompt_spread)


def p90_ratio(spread: float) -> float:
    """Return the 90th percentile of a log-normal length divided by its mean."""
    deviation = math.sqrt(math.log1p(spread))
    return math.exp(Z90 * deviation - deviation**2 / 2)


def spread_of(mean: float, p90: float) -> float:
    """Return the squared coefficient of variation for a mean and a 90th percentile.

    Raises:
        InvalidRequest: No log-normal distribution has this mean and percentile.
    """
    ratio = p90 / mean
    if not 1 <= ratio <= _MOST_RATIO:
        raise InvalidRequest(
            f"a mean of {mean:g} and a 90th percentile of {p90:g}: the percentile must be 1 to "
            f"{_MOST_RATIO:.2f} times the mean (lengths are taken as log-normal)"
        )
    deviation = Z90 - math.sqrt(max(Z90**2 - 2 * math.log(ratio), 0.0))
    return math.expm1(deviation**2)


def of_lengths(rate: float, lengths: Sequence[tuple[int, int]], cached: float) -> Workload:
    """Return the workload of requests with these (prompt, output) lengths, tokens.

    Raises:
        InvalidRequest: There are no requests, or a figure is out of range.
    """
    if not lengths:
        raise InvalidRequest("the workload has no requests")
    prompt, prompt_spread = _moments([float(prompt) for prompt, _ in lengths])
    output, output_spread = _moments([float(output) for _, output in lengths])
    return Workload(rate, prompt, output, cached, prompt_spread, output_spread)


def _moments(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    if mean == 0:
        return 0.0, 0.0
    return mean, sum((value / mean - 1) ** 2 for value in values) / len(values)


def _within(what: str, value: float, most: float, unit: str, least: float) -> None:
    """Raise if ``value`` is not a number from ``least`` to ``most``."""
    if not least <= value <= most:  # false for NaN as well
        raise InvalidRequest(f"{what} is {value:g} {unit}; it must be from {least:g} to {most:g}")

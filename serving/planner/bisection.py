"""Bisection on monotone conditions. Pure functions."""

from collections.abc import Callable

_ROUNDS = 15
"""Number of steps; the result is accurate to 0.003 % of the range."""


def largest(holds: Callable[[float], bool], most: float, least: float = 0.0) -> float:
    """Return the largest number from ``least`` to ``most`` for which ``holds`` is true.

    ``holds`` must be true up to some number and false above it. If it is never true, the result is
    ``least``.
    """
    if holds(most):
        return most
    low, high = least, most
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low

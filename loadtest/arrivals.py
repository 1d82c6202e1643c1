"""Arrival times: renewal processes of rate 1, stretched in time to a rate profile. Pure.

The n-th arrival of a process with rate r(t) is at R^-1(S_n), where R is the integral of r and S_n
the sum of the first n gaps of the process of rate 1 (the time-change theorem for renewal
processes). This allows every process to have a ramping rate.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Process = Literal["poisson", "constant", "gamma"]


@dataclass(frozen=True, slots=True)
class RateProfile:
    """Arrival rate over time, requests/s: linear from ``start`` to ``end``."""

    start: float
    end: float
    duration: float
    """Length of the profile, seconds."""

    @property
    def mean(self) -> float:
        """Mean arrival rate, requests/s."""
        return (self.start + self.end) / 2

    def time_of(self, count: float) -> float:
        """Return the time by which ``count`` arrivals are due, seconds; infinity if never."""
        slope = (self.end - self.start) / self.duration
        # Solves start*t + slope*t^2/2 = count, in a form without cancellation for small slopes.
        inside = self.start**2 + 2 * slope * count
        below = self.start + math.sqrt(inside) if inside >= 0 else 0.0
        return 2 * count / below if below > 0 else math.inf


def gaps(process: Process, burstiness: float, rng: random.Random) -> Callable[[], float]:
    """Return a source of gaps with mean 1.

    Args:
        process: Distribution of the gaps: exponential (poisson), equal (constant) or gamma.
        burstiness: Coefficient of variation of the gamma gaps (standard deviation over mean): 1 is
            Poisson, larger values are burstier.
        rng: Source of randomness.
    """
    if process == "constant":
        return lambda: 1.0
    if process == "poisson":
        return lambda: rng.expovariate(1.0)
    shape = burstiness**-2
    return lambda: rng.gammavariate(shape, 1 / shape)


def arrivals(profile: RateProfile, gap: Callable[[], float]) -> Iterator[float]:
    """Yield increasing arrival times, seconds, up to the profile's end."""
    due = 0.0
    for _ in itertools.count():
        due += gap()
        at = profile.time_of(due)
        if at >= profile.duration:
            return
        yield at

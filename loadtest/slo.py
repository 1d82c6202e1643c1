"""Service level objectives, and the search for the highest rate that meets one."""

import math
import statistics
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtest.record import Record


@dataclass(frozen=True, slots=True)
class Slo:
    """The limits of a request, and the share of requests that must meet all of them.

    Limits are in seconds. None means no limit.
    """

    ttft: float | None = None
    itl: float | None = None
    """Limit on a request's mean time between tokens."""
    latency: float | None = None
    share: float = 0.99

    @property
    def limits(self) -> bool:
        """Whether any limit is set."""
        return not (self.ttft is None and self.itl is None and self.latency is None)

    @property
    def tightest(self) -> float:
        """The smaller limit of TTFT and latency, seconds; infinity without limits."""
        return min(self.ttft or math.inf, self.latency or math.inf)

    def met_by(self, record: Record) -> bool:
        """Return whether a request met all limits; failed requests did not."""
        return (
            record.ok
            and _within(record.ttft, self.ttft)
            and _within(record.itl, self.itl)
            and _within(record.latency, self.latency)
        )

    def __str__(self) -> str:
        parts = [
            f"{name} ≤ {limit * 1000:g} ms"
            for name, limit in (("TTFT", self.ttft), ("ITL", self.itl), ("latency", self.latency))
            if limit is not None
        ]
        return f"{self.share * 100:.4g} % of requests with " + (" and ".join(parts) or "an answer")


def _within(value: float | None, limit: float | None) -> bool:
    return value is None or limit is None or value <= limit


def attainment(records: Iterable[Record], slo: Slo) -> float | None:
    """Return the share of requests that met all limits; None if there are no requests.

    Requests that were cancelled at the end of the run are omitted.
    """
    counted = [slo.met_by(record) for record in records if record.error != "cancelled"]
    return sum(counted) / len(counted) if counted else None


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial of a rate."""

    rate: float
    held: bool
    attained: float
    purpose: str
    """Phase of the search: probe, bisect or settle."""
    search: int = 1
    """Number of the search, from 1."""


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search."""

    rate: float | None
    """Requests/s. None: no rate held, not even the lowest one tried."""
    trials: tuple[Trial, ...]
    bounded: bool = True
    """Whether a higher rate failed."""
    halves: tuple[float, float] | None = None
    """Results of the first half and of the second half of the settling trials."""

    @property
    def moved(self) -> bool:
        """Whether the two halves differ by more than 10 %: the server changed during the search."""
        return self.halves is not None and max(self.halves) > 1.1 * min(self.halves)


@dataclass(frozen=True, slots=True)
class Tried:
    """Outcome of one trial."""

    share: float
    """Share of requests that met all limits."""
    held: bool = True
    """False if the trial ended early because it could no longer hold."""


Attempt = Callable[[float, int], Awaitable[Tried]]
"""Tries a rate with an arrival pattern; equal patterns give equal arrivals, scaled to the rate."""

MET_SHARE = 0.8
"""Share of trials that hold at the resulting rate."""
_STEP_UP = 0.015
"""Relative increase of the rate after a settling trial that held."""
_STEP_DOWN = _STEP_UP * MET_SHARE / (1 - MET_SHARE)
_BISECTION_RATIO = 1.15
"""Ratio of failed to held rate at which bisection ends: single trials are not more precise."""
MIN_SETTLING = 4
"""Minimum number of settling trials, which also applies if no rate failed."""
_SKIPPED_FRACTION = 4
"""The first 1/n of the settling trials is excluded from the result; this is n."""


class _Tries:
    """The trials so far."""

    def __init__(self, attempt: Attempt, share: float, seen: list[Trial], number: int) -> None:
        self._attempt = attempt
        self._share = share
        self._seen = seen
        self._number = number
        self.made: list[Trial] = []

    async def holds(self, rate: float, purpose: str, pattern: int = 0) -> bool:
        """Try a rate; return whether it held."""
        tried = await self._attempt(rate, pattern)
        held = tried.held and tried.share >= self._share
        trial = Trial(rate, held, tried.share, purpose, self._number)
        self.made.append(trial)
        self._seen.append(trial)
        return held


async def search(
    attempt: Attempt,
    *,
    start: float,
    most: float,
    share: float = 0.99,
    settling: int = 24,
    halvings: int = 6,
    made: list[Trial] | None = None,
    number: int = 1,
) -> Found:
    """Find the highest rate at which four of five trials hold.

    A trial near the limit is decided by chance: with 99 % of 400 requests, by the fifth miss, and
    misses occur in bursts. The search therefore finds the neighbourhood by doubling (or halving)
    and bisection. There, it raises the rate slightly after each trial that held, lowers it by four
    times as much after each trial that did not, and returns the geometric mean. This weighted
    up-down method (Kaernbach 1991, "Simple adaptive testing with the weighted up-down method",
    Perception & Psychophysics 49) converges to the rate at which increases and decreases balance.

    All searches use the same arrival patterns (common random numbers), so results differ only if
    the server behaves differently.

    Args:
        attempt: Tries a rate.
        start: First rate, requests/s.
        most: Highest rate to try, requests/s.
        share: Share of requests that must meet all limits.
        settling: Number of trials in the neighbourhood, at least ``MIN_SETTLING``.
        halvings: Maximum number of times that ``start`` is halved while it does not hold.
        made: Receives each trial when it ends, for interrupted searches.
        number: Number of this search in ``made``.
    """
    tries = _Tries(attempt, share, [] if made is None else made, number)
    low, high = await _bracket(tries, min(start, most), most, halvings)
    if not low:
        return Found(None, tuple(tries.made))
    while high and high / low > _BISECTION_RATIO:
        middle = math.sqrt(low * high)
        if await tries.holds(middle, "bisect"):
            low = middle
        else:
            high = middle
    count = settling if high else MIN_SETTLING
    rates = await _settle(tries, low, most, count)
    if not any(trial.held for trial in tries.made[-count:]):
        return Found(None, tuple(tries.made))
    bounded = any(not trial.held for trial in tries.made)
    half = len(rates) // 2
    halves = _middle(rates[:half]), _middle(rates[half:])
    return Found(_middle(rates), tuple(tries.made), bounded, halves)


async def _bracket(tries: _Tries, start: float, most: float, halvings: int) -> tuple[float, float]:
    """Return a rate that held and a rate that did not; 0 stands for a missing rate."""
    rate = start
    if await tries.holds(rate, "probe"):
        while rate < most:
            held, rate = rate, min(2 * rate, most)
            if not await tries.holds(rate, "probe"):
                return held, rate
        return rate, 0.0
    for _ in range(halvings):
        failed, rate = rate, rate / 2
        if await tries.holds(rate, "probe"):
            return rate, failed
    return 0.0, rate


async def _settle(tries: _Tries, rate: float, most: float, count: int) -> Sequence[float]:
    """Return the rates of the settling trials, without the first quarter."""
    rates = []
    for number in range(count):
        rates.append(rate)
        # Use other patterns than the trials that found the neighbourhood.
        held = await tries.holds(rate, "settle", number + 1)
        rate = min(rate * (1 + _STEP_UP), most) if held else rate * (1 - _STEP_DOWN)
    return rates[count // _SKIPPED_FRACTION :]


def _middle(rates: Sequence[float]) -> float:
    return statistics.geometric_mean(rates)

"""Limits that requests must meet, and the highest rate at which they do."""

import math
import statistics
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from loadtest.record import Record


@dataclass(frozen=True, slots=True)
class Slo:
    """A service level objective: a share of requests within all limits (seconds; none: any)."""

    ttft: float | None = None
    itl: float | None = None
    """Of a request's mean from token to token."""
    latency: float | None = None
    share: float = 0.99

    @property
    def limits(self) -> bool:
        """Whether there is any limit."""
        return not (self.ttft is None and self.itl is None and self.latency is None)

    @property
    def tightest(self) -> float:
        """Seconds of the tighter limit on TTFT and latency; infinite without."""
        return min(self.ttft or math.inf, self.latency or math.inf)

    def met_by(self, record: Record) -> bool:
        """Say whether one request met it. One that failed did not."""
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
    """Return the share of requests that met the objective; none without requests.

    Those that the end of the run cancelled say nothing and are left out.
    """
    counted = [slo.met_by(record) for record in records if record.error != "cancelled"]
    return sum(counted) / len(counted) if counted else None


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate that was tried."""

    rate: float
    held: bool
    attained: float
    purpose: str
    """probe, bisect or settle."""
    search: int = 1
    """Which one of searches in turn."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the search found."""

    rate: float | None
    """Requests a second; none: not even the lowest rate that was tried held."""
    trials: tuple[Trial, ...]
    bounded: bool = True
    """Whether a higher rate was seen to fail."""
    halves: tuple[float, float] | None = None
    """What either half of the settling trials would have answered."""

    @property
    def moved(self) -> bool:
        """Whether the server got faster or slower by more than a tenth while it was searched."""
        return self.halves is not None and max(self.halves) > 1.1 * min(self.halves)


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial as it ended."""

    share: float
    """Of requests that met the objective."""
    held: bool = True
    """False: it ended early, because it could not hold any more."""


Attempt = Callable[[float, int], Awaitable[Tried]]
"""Tries a rate with the arrivals of a pattern: equal numbers arrive alike, scaled to the rate."""

OFTEN = 0.8
"""Share of trials that hold at the answer."""
_UP = 0.015
"""Relative step of the settling trials after one that held."""
_DOWN = _UP * OFTEN / (1 - OFTEN)
_COARSE = 1.15
"""Rate that failed over rate that held at which bisecting ends: a trial says no more than that."""
FEWEST = 4
"""Settling trials; also made where no rate failed."""
_ON_THE_WAY = 4
"""One in so many settling trials only leads to the answer and is not in it."""


class _Tries:
    """Trials that were made so far."""

    def __init__(self, attempt: Attempt, share: float, seen: list[Trial], number: int) -> None:
        self._attempt = attempt
        self._share = share
        self._seen = seen
        self._number = number
        self.made: list[Trial] = []

    async def holds(self, rate: float, purpose: str, pattern: int = 0) -> bool:
        """Try a rate."""
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

    A trial near the edge is decided by chance: a share of 99 % of 400 requests by the fifth miss,
    and misses come in bursts. So the search only looks for the neighbourhood by doubling (or
    halving) and bisecting. There it goes up a little after each trial that held and down four
    times as much after each that did not, and answers the geometric mean of where it was:
    the weighted up-down method (Kaernbach 1991, "Simple adaptive testing with the weighted up-down
    method", Perception & Psychophysics 49), which stays where up and down are in balance.

    Every search meets the same patterns of arrivals (common random numbers): two answers
    differ only as far as the server does.

    Args:
        attempt: tries a rate.
        start: first rate, requests a second.
        most: highest rate to try.
        share: of requests that have to meet the objective.
        settling: trials in the neighbourhood, at least ``FEWEST``.
        halvings: how often ``start`` is halved when it does not hold.
        made: gets every trial as it ends, for when the search is cut off.
        number: of this search among those that fill ``made``.

    """
    tries = _Tries(attempt, share, [] if made is None else made, number)
    low, high = await _bracket(tries, min(start, most), most, halvings)
    if not low:
        return Found(None, tuple(tries.made))
    while high and high / low > _COARSE:
        middle = math.sqrt(low * high)
        if await tries.holds(middle, "bisect"):
            low = middle
        else:
            high = middle
    count = settling if high else FEWEST
    rates = await _settle(tries, low, most, count)
    if not any(trial.held for trial in tries.made[-count:]):
        return Found(None, tuple(tries.made))
    bounded = any(not trial.held for trial in tries.made)
    half = len(rates) // 2
    halves = _middle(rates[:half]), _middle(rates[half:])
    return Found(_middle(rates), tuple(tries.made), bounded, halves)


async def _bracket(tries: _Tries, start: float, most: float, halvings: int) -> tuple[float, float]:
    """Return a rate that held and one that did not; zero for either: there is none."""
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
    """Return the rates of the settling trials, but for those on the way."""
    rates = []
    for number in range(count):
        rates.append(rate)
        # Other arrivals than those that the neighbourhood was found by.
        held = await tries.holds(rate, "settle", number + 1)
        rate = min(rate * (1 + _UP), most) if held else rate * (1 - _DOWN)
    return rates[count // _ON_THE_WAY :]


def _middle(rates: Sequence[float]) -> float:
    return statistics.geometric_mean(rates)

"""Limits that requests must meet, and the highest rate at which they do."""

import math
from collections.abc import Awaitable, Callable, Iterable
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
    """probe, bisect or confirm."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the search found."""

    rate: float | None
    """Requests a second; none: not even the lowest rate that was tried held."""
    trials: tuple[Trial, ...]
    bounded: bool = True
    """Whether a higher rate was seen to fail."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One trial as it ended."""

    share: float
    """Of requests that met the objective."""
    requests: int
    held: bool = True
    """False: it ended early, because it could not hold any more."""


Attempt = Callable[[float, int], Awaitable[Tried]]
"""Tries a rate with the arrivals of a pattern: equal numbers arrive alike, scaled to the rate."""

POOLED = 3
"""Trials of one rate that are taken together before an unclear one is decided."""
_BURSTS = 3.0
"""Standard deviations of a share that are no news. Misses come in bursts, so they are more than
for independent requests."""
_SURE = 3.0
"""Misses that were to be expected at the edge: none of them is news (e^-3 is 5 %)."""


class _Judge:
    """Decides whether rates hold.

    One trial of 400 requests with 99 % asked for is decided by its fifth miss, that is by chance:
    near the edge trials are pooled until the share is clear. And every rate meets the same
    patterns of arrivals, in this search and in the next: rates differ in nothing else
    (common random numbers), so two searches differ only as far as the server does.
    """

    def __init__(self, attempt: Attempt, share: float) -> None:
        self._attempt = attempt
        self._share = share
        self.trials: list[Trial] = []

    async def holds(self, rate: float, purpose: str, first_pattern: int = 0) -> bool:
        """Try a rate until it is clear."""
        requests, met = 0, 0.0
        for pattern in range(first_pattern, first_pattern + POOLED):
            tried = await self._attempt(rate, pattern)
            requests += tried.requests
            met += tried.share * tried.requests
            share = met / max(requests, 1)
            holds = tried.held and share >= self._share
            self.trials.append(Trial(rate, holds, tried.share, purpose))
            if not tried.held or self._clear(share, requests):
                return holds
        return holds

    def _clear(self, share: float, requests: int) -> bool:
        expected = requests * (1 - self._share)
        if share == 1 and expected >= _SURE:
            return True
        noise = math.sqrt(self._share * (1 - self._share) / max(requests, 1))
        return abs(share - self._share) > _BURSTS * noise


async def search(
    attempt: Attempt,
    *,
    start: float,
    most: float,
    share: float = 0.99,
    precision: float = 0.03,
    confirmations: int = 2,
    halvings: int = 6,
) -> Found:
    """Find the highest rate that holds, and hold it again.

    Doubles (or halves) from ``start`` until the answer lies between two rates, bisects, and then
    repeats the best rate with other patterns of arrivals: each failure takes ``precision`` off
    until it holds ``confirmations`` times in a row.

    Args:
        attempt: tries a rate.
        start: first rate, requests a second.
        most: highest rate to try.
        share: of requests that have to meet the objective.
        precision: relative width at which bisecting ends.
        confirmations: how often in a row the answer must hold again.
        halvings: how often ``start`` is halved when it does not hold.

    """
    judge = _Judge(attempt, share)
    low, high = await _bracket(judge, min(start, most), most, halvings)
    while low and high and high / low > 1 + precision:
        middle = (low + high) / 2
        if await judge.holds(middle, "bisect"):
            low = middle
        else:
            high = middle
    if low:
        low, fell = await _confirm(judge, low, precision, confirmations)
        high = high or fell
    return Found(low or None, tuple(judge.trials), bounded=bool(high))


async def _bracket(judge: _Judge, start: float, most: float, halvings: int) -> tuple[float, float]:
    """Return a rate that held and one that did not; zero for either: there is none."""
    rate = start
    if await judge.holds(rate, "probe"):
        while rate < most:
            held, rate = rate, min(2 * rate, most)
            if not await judge.holds(rate, "probe"):
                return held, rate
        return rate, 0.0
    for _ in range(halvings):
        failed, rate = rate, rate / 2
        if await judge.holds(rate, "probe"):
            return rate, failed
    return 0.0, rate


async def _confirm(
    judge: _Judge, rate: float, precision: float, confirmations: int
) -> tuple[float, float]:
    """Return a rate that held so often in a row (zero: none), and the last that did not."""
    floor, failed, row = rate / 4, 0.0, 0
    while row < confirmations:
        # Other arrivals than those that the rate was chosen by.
        if await judge.holds(rate, "confirm", (row + 1) * POOLED):
            row += 1
        else:
            row, failed, rate = 0, rate, rate * (1 - precision)
            if rate < floor:
                return 0.0, failed
    return rate, failed

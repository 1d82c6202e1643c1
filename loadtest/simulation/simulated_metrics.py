"""The routers' histograms and counters as Prometheus would evaluate them over a window."""

from array import array
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import Histogram

from serving.autoscaler.signals import Reading, Signal
from serving.request_context import Priority
from serving.settings import AutoscalerSettings
from serving.telemetry import metrics

_QUANTILE = 0.9


def bounds_of(histogram: Histogram) -> tuple[float, ...]:
    """Return the finite upper bounds of a histogram's buckets."""
    samples = [sample for family in histogram.collect() for sample in family.samples]
    found = {float(sample.labels["le"]) for sample in samples if sample.name.endswith("_bucket")}
    return tuple(sorted(found - {float("inf")}))


class Buckets:
    """The non-cumulative counts of a histogram."""

    __slots__ = ("bounds", "counts")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = array("q", [0] * (len(bounds) + 1))

    def observe(self, value: float, times: int = 1) -> None:
        """Count ``value`` ``times`` times."""
        self.counts[bisect_left(self.bounds, value)] += times


def quantile(bounds: tuple[float, ...], counts: list[int], share: float) -> float | None:
    """Return a quantile as PromQL's ``histogram_quantile`` does; None without observations."""
    sums = list(accumulate(counts))
    total = sums[-1]
    if total <= 0:
        return None
    rank = share * total
    index = bisect_left(sums, rank)
    if index >= len(bounds):
        return bounds[-1]
    low = bounds[index - 1] if index else 0.0
    below = sums[index - 1] if index else 0
    return low + (bounds[index] - low) * (rank - below) / max(counts[index], 1)


@dataclass(frozen=True, slots=True)
class _Scrape:
    at: float
    tokens: int
    firsts: int
    ttft: "array[int]"
    itl: "array[int]"
    wait: "array[int]"


class SimulatedMetrics:
    """The routers' metrics that the autoscaler reads."""

    def __init__(self, settings: AutoscalerSettings) -> None:
        """Start without scrapes; ``settings`` has the window and the scrape interval."""
        self._settings = settings
        self._keep = settings.window
        self.ttft = Buckets(bounds_of(metrics.TIME_TO_FIRST_TOKEN))
        self.itl = Buckets(bounds_of(metrics.INTER_TOKEN_LATENCY))
        waits = metrics.ADMISSION_WAIT
        waits.labels(Priority.STANDARD.name.lower())  # a family without children has no buckets
        self.wait = Buckets(bounds_of(waits))
        self.tokens = 0
        self.firsts = 0
        self._scrapes: deque[_Scrape] = deque()
        self._gauges: tuple[int, int, int] = (0, 0, 0)

    def scrape(self, now: float, *, queued: int, queued_tokens: int, inflight: int) -> None:
        """Record a scrape."""
        self._scrapes.append(
            _Scrape(
                now,
                self.tokens,
                self.firsts,
                self.ttft.counts[:],
                self.itl.counts[:],
                self.wait.counts[:],
            )
        )
        self._gauges = (queued, queued_tokens, inflight)
        while self._scrapes[0].at < now - self._keep:
            self._scrapes.popleft()

    def signals(self, now: float, ready: int, times: int) -> dict[Signal, Reading]:
        """Return all signals as of the last scrape.

        Args:
            now: Current time, seconds.
            ready: Ready groups of the whole fleet.
            times: Number of real items that each simulated item stands for.
        """
        if not self._scrapes:
            return {}
        first, last = self._scrapes[0], self._scrapes[-1]
        age = now - last.at
        expected = max(1.0, self._keep / self._settings.scrape_interval)
        gap = 1.0 - min(1.0, len(self._scrapes) / expected)
        span = last.at - first.at

        def rate(counted: int) -> float:
            return counted * times / span if span > 0 else 0.0

        def p90(bounds: tuple[float, ...], new: "array[int]", old: "array[int]") -> float | None:
            counts = [a - b for a, b in zip(new, old, strict=True)]
            return quantile(bounds, counts, _QUANTILE)

        queued, queued_tokens, inflight = self._gauges
        values: dict[Signal, float | None] = {
            Signal.TTFT_P90: p90(self.ttft.bounds, last.ttft, first.ttft),
            Signal.ITL_P90: p90(self.itl.bounds, last.itl, first.itl),
            Signal.QUEUE_WAIT_P90: p90(self.wait.bounds, last.wait, first.wait),
            Signal.QUEUE_REQUESTS: queued * times,
            Signal.QUEUE_TOKENS: queued_tokens * times,
            Signal.TOKEN_RATE: rate(last.tokens - first.tokens),
            Signal.REQUEST_RATE: rate(last.firsts - first.firsts),
            Signal.INFLIGHT: inflight * times,
            Signal.READY_GROUPS: ready,
        }
        return {signal: Reading(value, age, gap) for signal, value in values.items()}

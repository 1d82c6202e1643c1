"""Latencies and counts by model and pool, which the autoscaler's decisions for each pool use.

They are plain numbers that are converted to metrics at each scrape, because a metric object with
labels would cost several times as much for each token.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from serving.telemetry import fleet_metrics as metrics
from serving.telemetry.fleet_metrics import Family


class Distribution:
    """The counts of a histogram. Not thread-safe."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, family: Family) -> None:
        """Count with the buckets of ``family``."""
        self._bounds = family.buckets
        self._counts = [0] * (len(family.buckets) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def total(self) -> float:
        """Sum of all values."""
        return self._total

    def buckets(self) -> list[tuple[str, float]]:
        """Return upper bound and cumulative count of each bucket, as in the text format."""
        names = (*map(repr, self._bounds), "+Inf")
        cumulative, found = 0, []
        for name, count in zip(names, self._counts, strict=True):
            cumulative += count
            found.append((name, float(cumulative)))
        return found


class PoolCounters:
    """Measurements of the requests of one pool, without requests of batches."""

    __slots__ = ("first_token", "generated_tokens", "inflight_requests", "inter_token")

    def __init__(self) -> None:
        self.first_token = Distribution(metrics.POOL_TIME_TO_FIRST_TOKEN)
        self.inter_token = Distribution(metrics.POOL_INTER_TOKEN_LATENCY)
        self.generated_tokens = 0
        self.inflight_requests = 0
        """Number of requests on ranks of the pool."""


class ModelCounters:
    """Measurements of the requests of one model."""

    __slots__ = ("lines", "pools", "wait")

    def __init__(self, pools: Iterable[str] = ()) -> None:
        """Start all counters at zero; ``pools`` are the names of the model's pools."""
        self.wait = Distribution(metrics.MODEL_ADMISSION_WAIT)
        """Time from entering admission to placement on a rank, seconds."""
        self.lines = 0
        """Lines of batches that run, or wait for room on a rank."""
        self.pools: Mapping[str, PoolCounters] = {name: PoolCounters() for name in pools}

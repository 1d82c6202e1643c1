"""Recent quantiles of a Prometheus histogram, from the differences of its buckets."""

from collections import deque
from math import inf

from prometheus_client import Histogram


class RecentQuantile:
    """Quantile of the values that a histogram observed in the last looks."""

    def __init__(self, histogram: Histogram, looks: int) -> None:
        """Watch a histogram without labels over ``looks`` calls of ``look``."""
        self._histogram = histogram
        self._counts: deque[dict[float, float]] = deque(maxlen=looks + 1)

    def look(self) -> None:
        """Read the histogram."""
        counts = {}
        for sample in next(iter(self._histogram.collect())).samples:
            if sample.name.endswith("_bucket"):
                counts[float(sample.labels["le"])] = sample.value
        self._counts.append(counts)

    def above(self, limit: float, fraction: float) -> bool:
        """Return whether more than ``fraction`` of the recent values exceeded ``limit``.

        ``limit`` is rounded up to the next bucket; without recent values, none did.
        """
        if len(self._counts) < 2:  # noqa: PLR2004  a difference takes two
            return False
        first, last = self._counts[0], self._counts[-1]
        total = last[inf] - first[inf]
        bound = min(bucket for bucket in last if bucket >= limit)
        within = last[bound] - first[bound]
        return total > 0 and (total - within) > fraction * total

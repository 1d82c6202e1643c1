"""Recent quantiles of latencies, from the differences of the buckets of their distributions."""

from collections import deque
from collections.abc import Callable, Iterable
from math import inf

Buckets = Iterable[tuple[str, float]]
"""Upper bound and cumulative count of each bucket, as in Prometheus' text format."""


class RecentQuantile:
    """Quantile of the values that were counted during the last looks."""

    def __init__(self, read: Callable[[], Iterable[Buckets]], looks: int) -> None:
        """Watch distributions over ``looks`` calls of ``look``.

        Args:
            read: Returns the buckets of each distribution; they all have the same bounds.
            looks: Number of calls of ``look`` that a value counts for.
        """
        self._read = read
        self._counts: deque[dict[float, float]] = deque(maxlen=looks + 1)

    def look(self) -> None:
        """Read the distributions."""
        counts: dict[float, float] = {}
        for buckets in self._read():
            for name, count in buckets:
                bound = float(name)
                counts[bound] = counts.get(bound, 0.0) + count
        self._counts.append(counts)

    def above(self, limit: float, fraction: float) -> bool:
        """Return whether more than ``fraction`` of the recent values exceeded ``limit``.

        ``limit`` is rounded up to the next bucket; without recent values, none did.
        """
        if len(self._counts) < 2:  # noqa: PLR2004  a difference takes two
            return False
        first, last = self._counts[0], self._counts[-1]
        if not last:
            return False
        total = last[inf] - first[inf]
        bound = min(bucket for bucket in last if bucket >= limit)
        within = last[bound] - first[bound]
        return total > 0 and (total - within) > fraction * total

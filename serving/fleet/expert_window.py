"""What a rank's experts computed lately, made from the cumulative counts that it reports."""

from collections.abc import Sequence

from serving.routing.snapshot import CountedLayer, RecentExperts

SPAN = 30.0
"""Seconds between two counts that are kept: what is called recent is one to two spans old."""


class ExpertWindow:
    """Remembers the counts of a while ago, to be subtracted from the newest.

    Imbalance of everything since the start would hide what goes on now. Before the first span
    is over, and after the rank's engine began to count anew, it is everything since the start.
    """

    __slots__ = ("_base", "_next_base", "_turned_at")

    def __init__(self) -> None:
        self._base: Sequence[CountedLayer] = ()
        self._next_base: Sequence[CountedLayer] = ()
        self._turned_at: float | None = None

    def update(self, counts: Sequence[CountedLayer], now: float) -> RecentExperts:
        """Take in a report; nothing is computed here, and ``counts`` must not change any more.

        Args:
            counts: cumulative tokens of each local expert, by layer.
            now: seconds on a monotonic clock.
        """
        if self._turned_at is None:
            self._turned_at = now
        elif now - self._turned_at >= SPAN:
            self._base, self._next_base = self._next_base, counts
            self._turned_at = now
        return RecentExperts(counts, self._base)

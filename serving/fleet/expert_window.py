"""What a rank's experts computed lately, made from the cumulative counts that it reports."""

from collections.abc import Iterable

from serving.link.v1 import link_pb2
from serving.routing.snapshot import LayerTokens

SPAN = 30.0
"""Seconds between two counts that are kept: what is called recent is one to two spans old."""

_Counts = dict[str, tuple[int, ...]]


class ExpertWindow:
    """Subtracts the counts of a while ago from the newest.

    Imbalance of everything since the start would hide what goes on now. Before the first span
    is over, and after the rank's engine began to count anew, it is everything since the start.
    """

    __slots__ = ("_base", "_next_base", "_turned_at")

    def __init__(self) -> None:
        self._base: _Counts = {}
        self._next_base: _Counts = {}
        self._turned_at: float | None = None

    def update(
        self, loads: Iterable[link_pb2.LayerExpertLoad], now: float
    ) -> tuple[LayerTokens, ...]:
        """Take in a report; returns what was computed lately, by layer.

        Args:
            loads: cumulative tokens of each local expert, by layer.
            now: seconds on a monotonic clock.
        """
        counts = {load.layer: tuple(load.tokens) for load in loads}
        if self._turned_at is None:
            self._turned_at = now
        elif now - self._turned_at >= SPAN:
            self._base, self._next_base = self._next_base, counts
            self._turned_at = now
        return tuple(
            LayerTokens(layer, _since(self._base.get(layer, ()), tokens))
            for layer, tokens in counts.items()
        )


def _since(base: tuple[int, ...], tokens: tuple[int, ...]) -> tuple[int, ...]:
    if len(base) != len(tokens) or any(new < old for old, new in zip(base, tokens, strict=True)):
        return tokens
    return tuple(new - old for old, new in zip(base, tokens, strict=True))

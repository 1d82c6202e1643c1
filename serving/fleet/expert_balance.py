"""Measures how evenly the experts of a group are loaded, and finds the hottest ones.

In each layer, a step of an expert-parallel group takes as long as its busiest rank, so the cost of
imbalance is max / mean per layer. Sums over layers would hide it, because expert 3 of one layer is
unrelated to expert 3 of another. The functions are pure functions of a snapshot; ``ExpertWindow``
computes the recent counts that they read.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

from serving.routing.snapshot import CountedLayer, GroupSnapshot, RecentExperts

ALL = "all"
_BANDS = 4
"""Number of bands of layers. Each band has one value, so the number of labels does not depend on
the depth."""
SPAN = 30.0
"""Time between two retained counts, seconds; "recent" covers the last one to two spans."""
_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Busiest load divided by mean load, averaged over some layers; 1 means balanced."""

    layers: str
    """``all``, or the numbers of the first and the last layer, e.g. ``3-17``."""
    experts: float
    """Imbalance between experts."""
    ranks: float
    """Imbalance between ranks."""


@dataclass(frozen=True, slots=True)
class HotExpert:
    """One of the busiest experts of a group."""

    layer: str
    expert: int
    """Global expert id."""
    ranks: tuple[int, ...]
    """Ranks that host the expert."""
    tokens: int
    """Number of tokens in the last 30 to 60 s."""
    times_mean: float
    """Tokens of this expert divided by the mean of the layer's experts."""


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """Recent tokens of all experts of one MoE layer."""

    number: int
    """Index of the layer in the model."""
    tokens: dict[int, int]
    """Tokens in the last 30 to 60 s, by global expert id."""


@dataclass(slots=True)
class _Layer:
    """One MoE layer; the lists are [ranks that reported the layer]."""

    name: str
    ranks: list[int] = field(default_factory=list)
    ids: list[tuple[int, ...]] = field(default_factory=list)
    """Global expert ids, [local experts] for each rank."""
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    """Tokens, [local experts] for each rank."""

    @property
    def number(self) -> int:
        found = _NUMBER.search(self.name)
        return int(found.group(1)) if found else 0

    @property
    def total(self) -> int:
        return sum(map(sum, self.tokens))

    def experts(self) -> Counter[int]:
        """Return tokens by global id, summed over the ranks that hold the expert."""
        counts: Counter[int] = Counter()
        for ids, tokens in zip(self.ids, self.tokens, strict=True):
            for expert, count in zip(ids, tokens, strict=False):
                counts[expert] += count
        return counts

    def peak_of_experts(self) -> float:
        held = sum(map(len, self.ids))
        if held == len(frozenset(chain.from_iterable(self.ids))):
            # The usual case, each expert on one rank: no sum over replicas is needed.
            return max(map(max, self.tokens)) * held / self.total
        return _peak(self.experts().values())


def imbalances(group: GroupSnapshot) -> tuple[Imbalance, ...]:
    """Return the imbalance over all MoE layers, then over up to four bands of them.

    Empty if no tokens were counted; a single layer has no bands.
    """
    layers = [layer for layer in _layers(group) if layer.total]
    if not layers:
        return ()
    bands = list(_bands(layers)) if len(layers) > 1 else []
    return tuple(
        Imbalance(
            name,
            _mean(layer.peak_of_experts() for layer in band),
            _mean(_peak([sum(tokens) for tokens in layer.tokens]) for layer in band),
        )
        for name, band in [(ALL, layers), *bands]
    )


def layer_loads(group: GroupSnapshot) -> tuple[LayerLoad, ...]:
    """Return the recent tokens of each expert, by layer, in the order of the layers."""
    return tuple(LayerLoad(layer.number, layer.experts()) for layer in _layers(group))


def hottest(group: GroupSnapshot, most: int = 8) -> tuple[HotExpert, ...]:
    """Return up to ``most`` experts with the highest load relative to their layer."""
    found = []
    for layer in _layers(group):
        experts = layer.experts()
        mean = experts.total() / len(experts) if experts else 0.0
        found += [
            HotExpert(layer.name, expert, _homes(layer, expert), tokens, tokens / mean)
            for expert, tokens in experts.most_common(most)
            if tokens
        ]
    found.sort(key=lambda hot: (-hot.times_mean, hot.layer, hot.expert))
    return tuple(found[:most])


def _homes(layer: _Layer, expert: int) -> tuple[int, ...]:
    return tuple(rank for rank, ids in zip(layer.ranks, layer.ids, strict=True) if expert in ids)


def _layers(group: GroupSnapshot) -> list[_Layer]:
    layers: dict[str, _Layer] = {}
    for rank in group.ranks:
        for recent in rank.recent_experts.layers():
            if len(recent.tokens) != len(rank.local_expert_ids) or not recent.tokens:
                continue  # the counts cannot be assigned to experts
            layer = layers.setdefault(recent.layer, _Layer(recent.layer))
            layer.ranks.append(rank.rank)
            layer.ids.append(rank.local_expert_ids)
            layer.tokens.append(recent.tokens)
    return sorted(layers.values(), key=lambda layer: (layer.number, layer.name))


def _bands(layers: Sequence[_Layer]) -> Iterator[tuple[str, Sequence[_Layer]]]:
    count = min(_BANDS, len(layers))
    cuts = [len(layers) * index // count for index in range(count + 1)]
    for begin, end in pairwise(cuts):
        band = layers[begin:end]
        first, last = band[0].number, band[-1].number
        yield (str(first) if first == last else f"{first}-{last}"), band


def _peak(values: Iterable[int]) -> float:
    counts = list(values)
    return max(counts) * len(counts) / sum(counts)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


class ExpertWindow:
    """Keeps the expert counts from 30 to 60 s ago, which are subtracted from the newest ones.

    The imbalance since the engine's start would hide the current one. During the first span, and
    after a restart of the rank's engine, counts cover the time since the engine's start.
    """

    __slots__ = ("_base", "_next_base", "_turned_at")

    def __init__(self) -> None:
        self._base: Sequence[CountedLayer] = ()
        self._next_base: Sequence[CountedLayer] = ()
        self._turned_at: float | None = None

    def update(self, counts: Sequence[CountedLayer], now: float) -> RecentExperts:
        """Record a report and return the recent counts, which are computed when they are read.

        Args:
            counts: Cumulative tokens of each local expert, by layer; must not change afterwards.
            now: Seconds on a monotonic clock.
        """
        if self._turned_at is None:
            self._turned_at = now
        elif now - self._turned_at >= SPAN:
            self._base, self._next_base = self._next_base, counts
            self._turned_at = now
        return RecentExperts(counts, self._base)

"""How evenly the experts of a group work, and which work most. Pure functions of a snapshot.

A step of an expert-parallel group takes as long as the busiest rank of each layer, so what costs
time is max / mean of a layer; sums over layers would hide it, because expert 3 of one layer has
nothing to do with expert 3 of another.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

from serving.routing.snapshot import GroupSnapshot

ALL = "all"
_BANDS = 4
"""Most groups of layers that are told apart: labels must stay few, whatever the model's depth."""
_NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Busiest over mean, as the mean of some layers; 1 is balanced."""

    layers: str
    """``all``, or the numbers of the first and the last one."""
    experts: float
    ranks: float


@dataclass(frozen=True, slots=True)
class HotExpert:
    """One of the busiest experts of a group."""

    layer: str
    expert: int
    """Global id."""
    ranks: tuple[int, ...]
    """Where it is computed."""
    tokens: int
    """Lately."""
    times_mean: float
    """Its tokens over the mean of the layer's experts."""


@dataclass(slots=True)
class _Layer:
    """One MoE layer: the ranks that told of it, the global ids and the tokens of their experts."""

    name: str
    ranks: list[int] = field(default_factory=list)
    ids: list[tuple[int, ...]] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def number(self) -> int:
        found = _NUMBER.search(self.name)
        return int(found.group(1)) if found else 0

    @property
    def total(self) -> int:
        return sum(map(sum, self.tokens))

    def experts(self) -> Counter[int]:
        """Tokens by global id: an expert may live on several ranks."""
        counts: Counter[int] = Counter()
        for ids, tokens in zip(self.ids, self.tokens, strict=True):
            for expert, count in zip(ids, tokens, strict=False):
                counts[expert] += count
        return counts

    def peak_of_experts(self) -> float:
        held = sum(map(len, self.ids))
        if held == len(frozenset(chain.from_iterable(self.ids))):
            # The usual case, without a look at each expert: each lives on one rank.
            return max(map(max, self.tokens)) * held / self.total
        return _peak(self.experts().values())


def imbalances(group: GroupSnapshot) -> tuple[Imbalance, ...]:
    """Return the imbalance of all MoE layers, then of up to four bands of them.

    Empty while nothing is computed, or where nobody counts; no bands for a single layer.
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


def hottest(group: GroupSnapshot, most: int = 8) -> tuple[HotExpert, ...]:
    """Return the experts that stand out most in their layer, the worst first."""
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
                continue  # nobody can say whose tokens these are
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

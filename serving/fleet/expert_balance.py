"""How evenly the experts of a group work, and which work most. Pure functions of a snapshot.

A step of an expert-parallel group takes as long as the busiest rank of each layer, so what costs
time is max / mean of a layer; sums over layers would hide it, because expert 3 of one layer has
nothing to do with expert 3 of another.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    name: str
    experts: Counter[int]
    ranks: Counter[int]
    homes: defaultdict[int, list[int]]

    @property
    def number(self) -> int:
        found = _NUMBER.search(self.name)
        return int(found.group(1)) if found else 0


def imbalances(group: GroupSnapshot) -> tuple[Imbalance, ...]:
    """Return the imbalance of all MoE layers, then of up to four bands of them.

    Empty while nothing is computed, or where nobody counts; no bands for a single layer.
    """
    layers = [layer for layer in _layers(group) if layer.ranks.total()]
    if not layers:
        return ()
    bands = list(_bands(layers)) if len(layers) > 1 else []
    return tuple(
        Imbalance(
            name,
            _mean(_peak(layer.experts.values()) for layer in band),
            _mean(_peak(layer.ranks.values()) for layer in band),
        )
        for name, band in [(ALL, layers), *bands]
    )


def hottest(group: GroupSnapshot, most: int = 8) -> tuple[HotExpert, ...]:
    """Return the experts that stand out most in their layer, the worst first."""
    found = [
        HotExpert(
            layer.name,
            expert,
            tuple(layer.homes[expert]),
            tokens,
            tokens * len(layer.experts) / layer.experts.total(),
        )
        for layer in _layers(group)
        for expert, tokens in layer.experts.items()
        if tokens
    ]
    found.sort(key=lambda hot: (-hot.times_mean, hot.layer, hot.expert))
    return tuple(found[:most])


def _layers(group: GroupSnapshot) -> list[_Layer]:
    layers: dict[str, _Layer] = {}
    for rank in group.ranks:
        for recent in rank.recent_experts:
            layer = layers.setdefault(
                recent.layer, _Layer(recent.layer, Counter(), Counter(), defaultdict(list))
            )
            layer.ranks[rank.rank] += sum(recent.tokens)
            # A rank that names no experts counts as a whole.
            for expert, tokens in zip(rank.local_expert_ids, recent.tokens, strict=False):
                layer.experts[expert] += tokens
                layer.homes[expert].append(rank.rank)
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
    total = sum(counts)
    return max(counts) * len(counts) / total if total else 1.0


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)

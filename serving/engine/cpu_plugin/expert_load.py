"""Counts of the tokens that each local expert computed, kept where the experts run."""

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class ExpertLoad:
    """Counts of one MoE layer in this process, cumulative since the last reset."""

    layer: str
    """Layer name as vLLM calls it."""
    local_ids: list[int]
    """Global ids of this process's experts, in the order of their local index."""
    tokens: torch.Tensor = field(init=False)
    """int64 (local experts,)."""

    def __post_init__(self) -> None:
        """Start at zero."""
        self.tokens = torch.zeros(len(self.local_ids), dtype=torch.int64)

    def add(self, local: torch.Tensor) -> None:
        """Count local expert indices; -1 stands for an expert that is elsewhere."""
        # Shifted by one so that "elsewhere" has a bin of its own: no mask, one kernel.
        bins = torch.bincount(local.reshape(-1) + 1, minlength=len(self.local_ids) + 1)
        self.tokens += bins[1:]


_layers: dict[str, ExpertLoad] = {}


def track(layer: str, local_ids: list[int]) -> ExpertLoad:
    """Return the counter of ``layer``, new at zero unless its experts are the same still."""
    load = _layers.get(layer)
    if load is None or load.local_ids != local_ids:
        load = _layers[layer] = ExpertLoad(layer, local_ids)
    return load


def layers() -> list[ExpertLoad]:
    """Return the counters of all layers in the order in which they were loaded."""
    return list(_layers.values())


def reset() -> None:
    """Set all counts to zero, so that warm-up does not count as traffic."""
    for load in _layers.values():
        load.tokens.zero_()

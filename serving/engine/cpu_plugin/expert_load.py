"""Token counts per local expert, kept in the process that runs the experts."""

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class ExpertLoad:
    """Counts of one MoE layer in this process, cumulative since the last reset."""

    layer: str
    """vLLM's name of the layer."""
    local_ids: list[int]
    """Global ids of this process's experts, ordered by local index."""
    tokens: torch.Tensor = field(init=False)
    """Tokens by local index, ``[local experts]``, int64."""

    def __post_init__(self) -> None:
        """Start at zero."""
        self.tokens = torch.zeros(len(self.local_ids), dtype=torch.int64)

    def add(self, local: torch.Tensor) -> None:
        """Count local expert indices of any shape; -1 (expert of another process) is ignored."""
        # Shifted by one to give -1 a bin: one kernel and no mask.
        bins = torch.bincount(local.reshape(-1) + 1, minlength=len(self.local_ids) + 1)
        self.tokens += bins[1:]


_layers: dict[str, ExpertLoad] = {}


def track(layer: str, local_ids: list[int]) -> ExpertLoad:
    """Return the layer's counter; create it if the layer is new or its experts have changed."""
    load = _layers.get(layer)
    if load is None or load.local_ids != local_ids:
        load = _layers[layer] = ExpertLoad(layer, local_ids)
    return load


def layers() -> list[ExpertLoad]:
    """Return the counters of all layers in loading order."""
    return list(_layers.values())


def reset() -> None:
    """Set all counts to zero; called after warm-up, which does not count as traffic."""
    for load in _layers.values():
        load.tokens.zero_()

"""The load of a group's experts as a matrix of layers and experts with one byte per cell.

A cell is the expert's tokens divided by the mean of its layer, in 32nds, up to 255 (8 times the
mean). DeepSeek-R1's 58 layers of 256 experts are 20 kB as base64.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict

import msgspec

from serving.console.hub import Parts
from serving.fleet.expert_balance import hottest, imbalances, layer_loads
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot

SCALE = 32
"""Value of a cell whose expert has the mean load of its layer."""
MAX_GROUPS = 8
"""Maximum number of groups that consoles watch at the same time."""
_HOTTEST = 12
_encode = msgspec.json.Encoder().encode


class ExpertsFeed:
    """Builds the part ``experts`` of one group."""

    def __init__(self, fleet: Callable[[], FleetSnapshot], group_id: str) -> None:
        """Create the feed.

        Args:
            fleet: Returns the current snapshot.
            group_id: The group. While it has not joined, the part is null.
        """
        self._fleet = fleet
        self._group_id = group_id

    def __call__(self) -> Parts:
        """Return the part as JSON."""
        groups = self._fleet().groups
        group = next((each for each in groups if each.group_id == self._group_id), None)
        return {"experts": b"null" if group is None else _encode(matrix(group))}


def matrix(group: GroupSnapshot) -> dict[str, object]:
    """Return the load of a group's experts as a JSON object."""
    held = (expert + 1 for rank in group.ranks for expert in rank.local_expert_ids)
    experts = max(group.total_experts, max(held, default=0))
    layers = layer_loads(group)
    homes: list[list[int]] = [[] for _ in range(experts)]
    for rank in group.ranks:
        for expert in rank.local_expert_ids:
            homes[expert].append(rank.rank)
    return {
        "group": group.group_id,
        "epoch": group.epoch,
        "experts": experts,
        "homes": homes,
        "layers": [layer.number for layer in layers],
        "tokens": [sum(layer.tokens.values()) for layer in layers],
        "cells": b64encode(b"".join(_row(layer.tokens, experts) for layer in layers)).decode(),
        "imbalance": [asdict(found) for found in imbalances(group)],
        "hottest": [asdict(hot) for hot in hottest(group, _HOTTEST)],
    }


def _row(tokens: Mapping[int, int], experts: int) -> bytes:
    scale = SCALE * experts / (sum(tokens.values()) or 1)
    return bytes(min(round(tokens.get(expert, 0) * scale), 255) for expert in range(experts))

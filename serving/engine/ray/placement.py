"""Whether the cluster has room for the groups, and what is missing if not.

Pure: nodes and needs go in, a sentence or nothing comes out. Ray would wait for room for
ever and in silence; this is what says why.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.errors import PlacementError
from serving.settings import GroupSettings, Platform

_EPSILON = 1e-6
"""Ray keeps resources in steps of 1e-4; differences below this are rounding."""

NODE_RESOURCE_SHARE = 0.001
"""What a rank takes of ``group.node_resource``: it says where a rank may be, not how many."""

REPLICA_CPUS = 1.0
"""Ray CPUs of a rank's own Serve replica, beside ``group.cpus_per_rank``."""


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """One node of the cluster and what is free on it (Ray resource name: amount)."""

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GroupNeeds:
    """What the groups ask of the cluster."""

    groups: int
    ranks: int
    """Ranks of one group."""
    strategy: str
    """pack, spread or strict_spread."""
    rank: Mapping[str, float]
    """Resources of one rank (Ray resource name: amount), all on one node."""


def rank_resources(group: GroupSettings, platform: Platform) -> dict[str, float]:
    """Return what one rank reserves on its node.

    The workers of a rank (tensor parallelism) are processes of its replica, so a rank
    never spans nodes and is one bundle of its gang's placement group.
    """
    resources = {"CPU": REPLICA_CPUS + group.cpus_per_rank}
    if platform is Platform.GPU:
        resources["GPU"] = float(group.tensor_parallel)
    if group.node_resource is not None:
        resources[group.node_resource] = NODE_RESOURCE_SHARE
    return resources


def group_needs(group: GroupSettings, platform: Platform) -> GroupNeeds:
    """Return what all groups of the settings ask for."""
    return GroupNeeds(
        groups=group.count,
        ranks=group.data_parallel,
        strategy=group.placement,
        rank=rank_resources(group, platform),
    )


def rank_slots(node: NodeRoom, rank: Mapping[str, float]) -> int:
    """Return how many ranks more fit on ``node``."""
    slots = math.inf
    for name, amount in rank.items():
        if amount <= 0:
            continue
        slots = min(slots, (node.free.get(name, 0.0) + _EPSILON) // amount)
    return 0 if math.isinf(slots) else int(slots)


def explain_gap(nodes: Sequence[NodeRoom], needs: GroupNeeds) -> str | None:
    """Return what is missing to place all groups, in one sentence, or ``None`` if all fit.

    A group is placed whole or not at all. Ranks of different groups may share a node; with
    strict_spread, ranks of one group may not. Then a node takes at most one rank of each
    group, and filling node after node, group by group in turn, shows that this is enough.
    """
    wanted = needs.groups * needs.ranks
    strict = needs.strategy == "strict_spread"
    most = needs.groups if strict else wanted
    room = sum(min(rank_slots(node, needs.rank), most) for node in nodes)
    if room >= wanted:
        return None
    each = _resources_text(needs.rank)
    what = f"{_plural(needs.groups, 'group')} of {_plural(needs.ranks, 'rank')}"
    if strict:
        what += ", one rank a node," if needs.groups == 1 else ", each with one rank a node,"
    if wanted == 1:
        need = f"{what} needs {each} free on one node"
    elif strict and needs.groups == 1:
        need = f"{what} needs {_plural(wanted, 'node')} with {each} free each"
    else:
        need = f"{what} needs room for {_plural(wanted, 'rank')} of {each} each"
    have = ", ".join(
        f"{node.address} ({_free_text(node, needs.rank)})"
        for node in sorted(nodes, key=lambda node: node.address)
    )
    return f"{need}; the cluster has room for {room} of {wanted}: {have or 'no live node'}"


def require_room(nodes: Sequence[NodeRoom], needs: GroupNeeds) -> None:
    """Return if all groups fit.

    Raises:
        PlacementError: saying what is needed and what there is.
    """
    gap = explain_gap(nodes, needs)
    if gap is not None:
        raise PlacementError(f"{gap}. {advice(needs)}")


def advice(needs: GroupNeeds) -> str:
    """Return what to do about missing room."""
    if needs.strategy == "strict_spread":
        return "Add nodes, or set group.placement to spread or pack"
    return "Add nodes, or lower group.count, group.data_parallel or group.cpus_per_rank"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _resources_text(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {_unit(name, amount)}" for name, amount in resources.items())


def _free_text(node: NodeRoom, rank: Mapping[str, float]) -> str:
    return ", ".join(
        f"{node.free.get(name, 0.0):g} of {node.total.get(name, 0.0):g} {_unit(name, 2)} free"
        for name in rank
    )


def _unit(name: str, amount: float) -> str:
    if name in {"CPU", "GPU"} and not math.isclose(amount, 1.0):
        return f"{name}s"
    return name

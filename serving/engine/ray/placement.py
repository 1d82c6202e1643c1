"""Check that the cluster has sufficient resources for the groups, with an explanation if not.

Pure functions of nodes and needs. Ray waits for resources indefinitely and reports no reason.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.errors import PlacementError
from serving.settings import GroupSettings, Platform

_EPSILON = 1e-6
"""Tolerance for rounding; Ray counts resources in steps of 1e-4."""

NODE_RESOURCE_SHARE = 0.001
"""Amount of ``group.node_resource`` per rank; small, because it selects nodes without limiting
the number of ranks."""

REPLICA_CPUS = 1.0
"""Number of Ray CPUs of a rank's Serve replica, in addition to ``group.cpus_per_rank``."""


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """Resources of one node, as amounts by Ray resource name."""

    address: str
    total: Mapping[str, float]
    free: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GroupNeeds:
    """Resources that the groups need from the cluster."""

    groups: int
    ranks: int
    """Number of ranks of one group."""
    strategy: str
    """pack, spread or strict_spread."""
    rank: Mapping[str, float]
    """Resources of one rank by Ray resource name, all on one node."""


def rank_resources(group: GroupSettings, platform: Platform) -> dict[str, float]:
    """Return the resources that one rank reserves on its node, by Ray resource name.

    The tensor-parallel workers of a rank are processes of its replica, so a rank never spans nodes
    and is one bundle of the gang's placement group.
    """
    resources = {"CPU": REPLICA_CPUS + group.cpus_per_rank}
    if platform is Platform.GPU:
        resources["GPU"] = float(group.tensor_parallel)
    if group.node_resource is not None:
        resources[group.node_resource] = NODE_RESOURCE_SHARE
    return resources


def group_needs(group: GroupSettings, platform: Platform) -> GroupNeeds:
    """Return the needs of all groups of the settings."""
    return GroupNeeds(
        groups=group.count,
        ranks=group.data_parallel,
        strategy=group.placement,
        rank=rank_resources(group, platform),
    )


def rank_slots(node: NodeRoom, rank: Mapping[str, float]) -> int:
    """Return the number of additional ranks that fit on ``node``."""
    slots = math.inf
    for name, amount in rank.items():
        if amount <= 0:
            continue
        slots = min(slots, (node.free.get(name, 0.0) + _EPSILON) // amount)
    return 0 if math.isinf(slots) else int(slots)


def explain_gap(nodes: Sequence[NodeRoom], needs: GroupNeeds) -> str | None:
    """Return a sentence about the missing resources, or ``None`` if all groups fit.

    Groups are placed atomically. Ranks of different groups can share a node; with strict_spread,
    ranks of the same group cannot. A node then holds at most one rank of each group, so it
    contributes ``min(slots, groups)`` slots. This condition is also sufficient: fill the nodes one
    after the other, assigning ranks to the groups in rotation.
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
        what += ", one rank per node," if needs.groups == 1 else ", each with one rank per node,"
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
    """Check that all groups fit.

    Raises:
        PlacementError: The groups do not fit; the message states needed and available resources.
    """
    gap = explain_gap(nodes, needs)
    if gap is not None:
        raise PlacementError(f"{gap}. {advice(needs)}")


def advice(needs: GroupNeeds) -> str:
    """Return the remedy for missing resources."""
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

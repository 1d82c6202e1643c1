"""Whether groups fit: a table, and a comparison with brute force."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.engine.ray.placement import (
    GroupNeeds,
    NodeRoom,
    explain_gap,
    group_needs,
    rank_resources,
    rank_slots,
    require_room,
)
from serving.errors import PlacementError
from serving.settings import GroupSettings, Platform


def node(address: str, cpus: float, free: float | None = None, **other: float) -> NodeRoom:
    total = {"CPU": cpus, **other}
    return NodeRoom(address, total, {**total, "CPU": cpus if free is None else free})


def needs(groups: int, ranks: int, strategy: str, **rank: float) -> GroupNeeds:
    return GroupNeeds(groups, ranks, strategy, rank or {"CPU": 2.0})


@pytest.mark.parametrize(
    ("nodes", "wanted", "gap"),
    [
        pytest.param([node("a", 4)], needs(1, 2, "pack"), None, id="one node holds both"),
        pytest.param([node("a", 4)], needs(1, 2, "spread"), None, id="spread may share"),
        pytest.param(
            [node("a", 2), node("b", 2)], needs(1, 2, "strict_spread"), None, id="one a node"
        ),
        pytest.param(
            [node("127.0.0.1", 4, 3)],
            needs(1, 2, "strict_spread"),
            "1 group of 2 ranks, one rank per node, needs 2 nodes with 2 CPUs free each; the "
            "cluster has room for 1 of 2: 127.0.0.1 (3 of 4 CPUs free)",
            id="strict needs nodes, not CPUs",
        ),
        pytest.param(
            [node("b", 8, 1), node("a", 8, 2.5)],
            needs(1, 2, "pack"),
            "1 group of 2 ranks needs room for 2 ranks of 2 CPUs each; the cluster has room "
            "for 1 of 2: a (2.5 of 8 CPUs free), b (1 of 8 CPUs free)",
            id="rooms do not add up over nodes",
        ),
        pytest.param(
            [node("a", 64, GPU=4.0)],
            needs(1, 2, "pack", CPU=2.0, GPU=4.0),
            "1 group of 2 ranks needs room for 2 ranks of 2 CPUs and 4 GPUs each; the cluster "
            "has room for 1 of 2: a (64 of 64 CPUs free, 4 of 4 GPUs free)",
            id="GPUs run out first",
        ),
        pytest.param(
            [],
            needs(2, 1, "pack"),
            "2 groups of 1 rank needs room for 2 ranks of 2 CPUs each; the cluster has room "
            "for 0 of 2: no live node",
            id="no node",
        ),
        pytest.param(
            [node("a", 1)],
            needs(1, 1, "pack"),
            "1 group of 1 rank needs 2 CPUs free on one node; the cluster has room for 0 of "
            "1: a (1 of 1 CPUs free)",
            id="a single rank",
        ),
        pytest.param([], needs(0, 2, "pack"), None, id="no groups need nothing"),
        pytest.param(
            [node("a", 4), node("b", 4)],
            needs(2, 2, "strict_spread"),
            None,
            id="groups may share nodes, ranks of one group may not",
        ),
        pytest.param(
            [node("a", 8), node("b", 2)],
            needs(2, 2, "strict_spread"),
            "2 groups of 2 ranks, each with one rank per node, needs room for 4 ranks of 2 CPUs "
            "each; the cluster has room for 3 of 4: a (8 of 8 CPUs free), b (2 of 2 CPUs free)",
            id="room on one node does not help the second rank",
        ),
    ],
)
def test_gap(nodes: list[NodeRoom], wanted: GroupNeeds, gap: str | None) -> None:
    assert explain_gap(nodes, wanted) == gap


def test_error_says_what_to_do() -> None:
    with pytest.raises(PlacementError, match=r"needs 2 nodes .* set group.placement to spread"):
        require_room([node("a", 8)], needs(1, 2, "strict_spread"))
    require_room([node("a", 8), node("b", 8)], needs(1, 2, "strict_spread"))


@pytest.mark.parametrize(
    ("group", "platform", "expected"),
    [
        pytest.param(GroupSettings(), Platform.CPU, {"CPU": 2.0}, id="cpu"),
        pytest.param(
            GroupSettings(tensor_parallel=4, cpus_per_rank=3),
            Platform.GPU,
            {"CPU": 4.0, "GPU": 4.0},
            id="gpu: the workers of a rank share its bundle",
        ),
        pytest.param(
            GroupSettings(node_resource="pool-a"),
            Platform.CPU,
            {"CPU": 2.0, "pool-a": 0.001},
            id="pool: a trace of what only its nodes offer",
        ),
    ],
)
def test_rank_resources(
    group: GroupSettings, platform: Platform, expected: dict[str, float]
) -> None:
    assert rank_resources(group, platform) == expected
    assert group_needs(group, platform).rank == expected


cpus = st.integers(0, 6).map(float)


@given(
    free=st.lists(cpus, max_size=4),
    groups=st.integers(1, 2),
    ranks=st.integers(1, 3),
    rank_cpus=st.integers(1, 3),
    strategy=st.sampled_from(["pack", "spread", "strict_spread"]),
)
def test_agrees_with_trying_every_placement(
    free: list[float], groups: int, ranks: int, rank_cpus: int, strategy: str
) -> None:
    nodes = [node(f"n{index}", amount) for index, amount in enumerate(free)]
    wanted = needs(groups, ranks, strategy, CPU=float(rank_cpus))

    def fits(places: tuple[int, ...]) -> bool:
        apart = strategy != "strict_spread" or all(
            len(set(places[first : first + ranks])) == ranks
            for first in range(0, len(places), ranks)
        )
        return apart and all(
            places.count(index) * rank_cpus <= amount for index, amount in enumerate(free)
        )

    possible = any(
        fits(places) for places in itertools.product(range(len(free)), repeat=groups * ranks)
    )
    assert (explain_gap(nodes, wanted) is None) == possible


@given(amount=st.floats(0, 1e6), each=st.floats(0.1, 100))
def test_slots_never_exceed_what_is_free(amount: float, each: float) -> None:
    slots = rank_slots(node("a", amount), {"CPU": each})
    assert slots * each <= amount + 1e-3
    assert (slots + 1) * each > amount

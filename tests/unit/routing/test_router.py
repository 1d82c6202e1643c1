"""pick_rank: which rank, and why, or why none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.routing.router import Demand, NoPick, Pick, pick_rank
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, MemberState, RankSnapshot

READY, DRAINING, FENCED, JOINING = (
    MemberState.READY,
    MemberState.DRAINING,
    MemberState.FENCED,
    MemberState.JOINING,
)


def rank(index, outstanding=0, *, group="g0", healthy=True, draining=False, max_model_len=0):
    return RankSnapshot(
        group,
        "e",
        index,
        healthy,
        draining=draining,
        outstanding_tokens=outstanding,
        max_model_len=max_model_len,
    )


def group(*ranks, name="g0", state=READY):
    return GroupSnapshot(name, "e", state, "because", 0.0, len(ranks), ranks=ranks)


def fleet(*groups, history=()):
    return FleetSnapshot("r", groups, history)


@pytest.mark.parametrize(
    ("snapshot", "turn", "expected"),
    [
        pytest.param(fleet(group(rank(0, 9), rank(1, 3))), 0, ("g0", 1), id="fewest tokens"),
        pytest.param(fleet(group(rank(0), rank(1))), 0, ("g0", 0), id="tie, first turn"),
        pytest.param(fleet(group(rank(0), rank(1))), 1, ("g0", 1), id="tie, second turn"),
        pytest.param(fleet(group(rank(0), rank(1))), 2, ("g0", 0), id="tie, round again"),
        pytest.param(
            fleet(group(rank(0, 5), rank(1, 2), rank(2, 2))), 1, ("g0", 2), id="tie among some"
        ),
        pytest.param(
            fleet(group(rank(0, 5)), group(rank(0, 1, group="g1"), name="g1")),
            0,
            ("g1", 0),
            id="across groups",
        ),
        pytest.param(
            fleet(
                group(rank(0, 0), state=DRAINING),
                group(rank(0, 0, group="g1"), name="g1", state=FENCED),
                group(rank(0, 0, group="g2"), name="g2", state=JOINING),
                group(rank(0, 99, group="g3"), name="g3"),
            ),
            0,
            ("g3", 0),
            id="only ready groups",
        ),
        pytest.param(
            fleet(group(rank(0, healthy=False), rank(1, 50))), 0, ("g0", 1), id="only healthy ranks"
        ),
        pytest.param(
            fleet(group(rank(0, draining=True), rank(1, 50))), 0, ("g0", 1), id="no draining rank"
        ),
        pytest.param(
            fleet(group(rank(0, 0, max_model_len=10), rank(1, 50, max_model_len=11))),
            0,
            ("g0", 1),
            id="prompt and one token must fit",
        ),
    ],
)
def test_picks(snapshot, turn, expected):
    pick = pick_rank(snapshot, Demand(10), turn=turn)
    assert isinstance(pick, Pick)
    assert (pick.group_id, pick.rank) == expected
    assert "fewest outstanding tokens" in pick.reason


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        pytest.param(fleet(), "no group has joined this router yet", id="empty"),
        pytest.param(
            fleet(history=(group(name="g7", state=MemberState.GONE),)),
            "the last one (g7) is gone: because",
            id="all gone",
        ),
        pytest.param(
            fleet(group(rank(0), state=FENCED)), "g0 is fenced (because)", id="none ready"
        ),
        pytest.param(
            fleet(group(rank(0, max_model_len=5))), "a prompt of 10 tokens", id="prompt too long"
        ),
    ],
)
def test_says_why_none(snapshot, words):
    pick = pick_rank(snapshot, Demand(10))
    assert isinstance(pick, NoPick)
    assert words in pick.reason


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 1000))
def test_never_passes_over_a_less_loaded_rank(loads, turn):
    snapshot = fleet(group(*(rank(index, load) for index, load in enumerate(loads))))
    pick = pick_rank(snapshot, Demand(1), turn=turn)
    assert isinstance(pick, Pick)
    assert loads[pick.rank] == min(loads)


@given(st.integers(1, 8))
def test_equal_ranks_share_evenly(count):
    snapshot = fleet(group(*(rank(index) for index in range(count))))
    picks = [pick_rank(snapshot, Demand(1), turn=turn) for turn in range(3 * count)]
    assert all(
        sum(pick.rank == index for pick in picks if isinstance(pick, Pick)) == 3
        for index in range(count)
    )

"""The limits that all pools share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.autoscaler.decision import Decision, Vote, VoteKind
from serving.autoscaler.sharing import apply_limits, shared_limits
from tests.unit.autoscaler.fleets import pool
from tests.unit.autoscaler.observations import settings

PARKED = (Vote("parked", VoteKind.VOTE, 1, "1 requests are parked"),)


def decision(current, target, *, parked=False):
    votes = PARKED if parked else ()
    return Decision(0.0, current, target, "wanted", votes, blind=False)


def shared(limits, pools, decisions, held=None, spent=0.0):
    found = shared_limits(settings(**limits), pools, spent)
    return apply_limits(decisions, pools, held or {}, found)


POOLS = [pool("a", 2.0), pool("b", 2.0), pool("c", 1.0, min_groups=1)]
KEYS = ["a/default", "b/default", "c/default"]


@pytest.mark.parametrize(
    ("limits", "moves", "targets"),
    [
        pytest.param({}, [(1, 9), (1, 9), (1, 9)], [9, 9, 9], id="no-limit"),
        pytest.param({"max_gpus": 11.0}, [(1, 3), (1, 2), (1, 1)], [3, 2, 1], id="fits"),
        pytest.param({"max_gpus": 9.0}, [(1, 4), (1, 4), (1, 1)], [2, 2, 1], id="equal-parts"),
        pytest.param({"max_gpus": 7.0}, [(1, 4), (1, 2), (1, 1)], [2, 1, 1], id="least-served"),
        pytest.param(
            {"max_gpus": 7.0}, [(3, 1), (0, 2), (1, 1)], [1, 0, 1], id="removed-groups-still-count"
        ),
        pytest.param({"max_gpus": 5.0}, [(2, 2), (0, 1), (1, 1)], [2, 0, 1], id="nobody-gives-up"),
        pytest.param(
            {"max_gpus": 5.0}, [(3, 3), (1, 2), (1, 1)], [1, 1, 1], id="a-lowered-limit-shrinks"
        ),
        pytest.param(
            {"max_gpus": 3.0}, [(3, 3), (2, 2), (2, 2)], [0, 0, 2], id="the-largest-shrink"
        ),
        pytest.param({"max_nodes": 4}, [(1, 4), (1, 1), (1, 1)], [2, 1, 1], id="nodes"),
        pytest.param(
            {"max_gpus": 20.0, "max_nodes": 3}, [(1, 4), (1, 1), (1, 1)], [1, 1, 1], id="both"
        ),
        pytest.param(
            {"gpu_hours_per_day": 1.0}, [(0, 4), (0, 4), (0, 1)], [3, 2, 1], id="hours-left"
        ),
    ],
)
def test_targets(limits, moves, targets):
    decisions = {key: decision(*move) for key, move in zip(KEYS, moves, strict=True)}
    found = shared(limits, POOLS, decisions)
    assert [found[key].target for key in KEYS] == targets
    for key, (_, wanted) in zip(KEYS, moves, strict=True):
        assert (found[key].reason == "wanted") == (found[key].target == wanted)


def test_the_reason_names_the_limit():
    found = shared({"max_gpus": 1.0}, POOLS, {KEYS[0]: decision(0, 1)})
    assert found[KEYS[0]].reason == "max_gpus 1; wanted"


def test_used_up_hours_leave_the_minimum():
    decisions = {KEYS[0]: decision(2, 3), KEYS[2]: decision(0, 1)}
    found = shared({"gpu_hours_per_day": 5.0}, POOLS, decisions, spent=5.0)
    assert [each.target for each in found.values()] == [0, 1]
    assert found[KEYS[0]].reason == "5 of 5 GPU-hours; wanted"


def test_a_model_without_groups_is_served_first():
    decisions = {KEYS[0]: decision(0, 3), KEYS[1]: decision(0, 1, parked=True)}
    found = shared({"max_gpus": 2.0}, POOLS, decisions)
    assert [each.target for each in found.values()] == [0, 1]


def test_a_minimum_is_served_before_a_parked_request():
    decisions = {KEYS[1]: decision(0, 1, parked=True), KEYS[2]: decision(0, 1)}
    found = shared({"max_gpus": 2.0}, POOLS, decisions)
    assert [each.target for each in found.values()] == [0, 1]


def test_pools_of_unknown_number_occupy_what_they_may_have():
    decisions = {KEYS[0]: decision(1, 4)}
    assert shared({"max_gpus": 8.0}, POOLS, decisions)[KEYS[0]].target == 4
    assert shared({"max_gpus": 8.0}, POOLS, decisions, {KEYS[1]: 2})[KEYS[0]].target == 2


@st.composite
def fleets(draw):
    pools, decisions = [], {}
    for number in range(draw(st.integers(1, 5))):
        least = draw(st.integers(0, 2))
        gpus = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0, 8.0]))
        nodes = draw(st.integers(1, 4))
        each = pool(
            f"m{number}",
            gpus,
            min_groups=least,
            kubernetes={"workers_per_group": nodes},
        )
        pools.append(each)
        current = draw(st.integers(0, 8))
        target = draw(st.integers(least, 8))
        decisions[each.key] = decision(current, target, parked=draw(st.booleans()))
    limits = {
        "max_gpus": draw(st.none() | st.floats(0.5, 60)),
        "max_nodes": draw(st.none() | st.integers(1, 30)),
        "gpu_hours_per_day": draw(st.none() | st.floats(0.5, 60)),
    }
    return pools, decisions, limits, draw(st.floats(0, 60))


@given(fleets())
def test_no_limit_is_exceeded_and_no_group_is_invented(case):
    pools, decisions, limits, spent = case
    found = shared(limits, pools, decisions, spent=spent)
    targets = {key: each.target for key, each in found.items()}
    before = {key: each.current for key, each in decisions.items()}
    floors = {each.key: each.settings.min_groups for each in pools}
    for limit in shared_limits(settings(**limits), pools, spent):
        # While groups are being removed, they and the added ones must fit too.
        peak = {key: max(before[key], targets[key]) for key in targets}
        unavoidable = limit.used(floors) if limit.spares_minimum else 0.0
        allowed = max(limit.capacity, limit.used(before))
        assert limit.used(peak) <= allowed + unavoidable + 1e-6
        lowest = {key: min(before[key], floors[key], targets[key]) for key in targets}
        if limit.used(targets) > limit.capacity + unavoidable + 1e-6:
            # Exceeded before and not by growth: every pool is at its minimum.
            assert all(
                targets[key] <= max(floors[key], lowest[key]) or limit.costs[key] == 0
                for key in targets
            )
    for key, each in found.items():
        wanted = decisions[key]
        assert each.target <= max(wanted.target, wanted.current)
        assert each.target <= wanted.target or wanted.target < floors[key]
        if wanted.target <= wanted.current and not limits_bind(limits, pools, decisions, spent):
            assert each.target == wanted.target


def limits_bind(limits, pools, decisions, spent):
    """Whether the pools exceed a limit already, without any growth."""
    kept = {key: min(each.current, each.target) for key, each in decisions.items()}
    return any(
        limit.used(kept) > limit.capacity
        for limit in shared_limits(settings(**limits), pools, spent)
    )

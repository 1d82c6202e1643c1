"""A group: latencies grow with the load, and the capacity is where objectives are just met."""

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from serving.planner.accelerators import ACCELERATORS
from serving.planner.constants import VLLM
from serving.planner.group import Group, Objective, Role
from serving.planner.roofline import Limit, StepModel
from serving.planner.workload import Workload
from tests.support.planning import LOAD, R1, groups, loads

H200_16 = Group(
    StepModel(R1, ACCELERATORS["h200"], 16, 1, VLLM), Role.MIXED, 512, 200.0, Limit.KV, 1, 0.85
)


@settings(max_examples=60)
@given(groups, loads, st.floats(0.01, 0.99))
def test_more_load_is_never_faster(group: Group, load: Workload, share: float) -> None:
    rate = group.bound(load) * share
    less, more = group.serve(load, rate / 2), group.serve(load, rate)
    assume(more is not None)
    assert less is not None
    # The fixed point is accurate to 0.05 %.
    for name in ("ttft", "ttft_p90", "itl", "itl_p90", "sequences", "load"):
        assert getattr(less, name) <= getattr(more, name) * 1.01 + 1e-9, name


@settings(max_examples=25)
@given(groups, loads)
def test_the_capacity_is_the_edge(group: Group, load: Workload) -> None:
    objective = Objective(5.0, 0.2)
    capacity = group.capacity(load, objective)
    assume(capacity > 0)
    assert group.meets(load, capacity, objective)
    assert not group.meets(load, capacity * 1.01, objective)
    assert capacity <= group.bound(load)


@settings(max_examples=25)
@given(groups, loads, st.floats(1.1, 3))
def test_longer_prompts_and_outputs_never_raise_the_capacity(
    group: Group, load: Workload, factor: float
) -> None:
    objective = Objective(5.0, 0.2)
    capacity = group.capacity(load, objective)
    for name in ("prompt", "output"):
        longer = dataclasses.replace(load, **{name: getattr(load, name) * factor})
        assert group.capacity(longer, objective) <= capacity * 1.005


@pytest.mark.parametrize("role", Role)
def test_overload_is_reported(role: Role) -> None:
    group = dataclasses.replace(H200_16, role=role)
    assert group.serve(LOAD, group.bound(LOAD) * 2) is None
    assert not group.meets(LOAD, group.bound(LOAD) * 2, Objective())


@pytest.mark.parametrize(
    ("changes", "objective", "limit"),
    [
        pytest.param({"most_sequences": 4.0}, Objective(), Limit.KV, id="no room for sequences"),
        pytest.param({"most_sequences": 4.0, "most_limit": Limit.SEQUENCES}, Objective(),
                     Limit.SEQUENCES, id="the limit of sequences"),
        pytest.param({"role": Role.PREFILL}, Objective(ttft=0.7), Limit.COMPUTE, id="prompts"),
    ],
)  # fmt: skip
def test_what_limits_a_group(
    changes: dict[str, object], objective: Objective, limit: Limit
) -> None:
    group = dataclasses.replace(H200_16, **changes)  # type: ignore[arg-type]
    assert group.limit(LOAD, group.capacity(LOAD, objective), objective) is limit


def test_drafts_count_while_they_are_accepted() -> None:
    three = dataclasses.replace(H200_16, drafts=3, acceptance=0.5)
    assert three.accepted == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert dataclasses.replace(H200_16, drafts=0).accepted == 1


def test_a_decode_group_serves_more_outputs_than_a_mixed_one() -> None:
    decode = dataclasses.replace(H200_16, role=Role.DECODE)
    assert decode.capacity(LOAD, Objective()) > H200_16.capacity(LOAD, Objective())

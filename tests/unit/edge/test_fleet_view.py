"""/fleet and GetFleet return the same content."""

import json
from dataclasses import replace

import pytest
from google.protobuf import json_format

from serving.api.v1 import fleet_pb2
from serving.edge.fleet_view import FleetView, metrics_targets, readiness
from serving.routing.snapshot import (
    FleetSnapshot,
    GroupSnapshot,
    LayerTokens,
    MemberState,
    RankLoad,
    RankSnapshot,
    RecentExperts,
)


def rank(number: int) -> RankSnapshot:
    return RankSnapshot(
        group_id="g0",
        epoch="e1",
        rank=number,
        healthy=True,
        node="127.0.0.1",
        pid=100 + number,
        local_expert_ids=tuple(range(8 * number, 8 * number + 8)),
        load=RankLoad(
            running_requests=2,
            kv_usage=0.25,
            generated_tokens_total=2**40,
            expert_tokens=tuple(range(8)),
            mtp_proposed_tokens=9,
            mtp_accepted_tokens=7,
        ),
        inflight_requests=3,
        outstanding_tokens=400,
        engine_version="fake 1",
    )


def group(state: MemberState, name: str = "g0") -> GroupSnapshot:
    return GroupSnapshot(name, "e1", state, "because", 12.5, 2, 16, (rank(0), rank(1)), "blue")


READY = FleetSnapshot("r1", (group(MemberState.READY),), (group(MemberState.GONE, "old"),))


def test_json_and_proto_agree():
    view = FleetView(READY, "pocket-r1", 4)
    shown = json.loads(json.dumps(view.to_json()))
    proto = view.to_proto()
    assert (
        (shown["router_id"], shown["model"])
        == (proto.router_id, proto.model)
        == (
            "r1",
            "pocket-r1",
        )
    )
    assert shown["inflight_requests"] == proto.inflight_requests == 4
    assert [g["group_id"] for g in (*shown["groups"], *shown["history"])] == [
        g.group_id for g in proto.groups
    ]
    assert shown["groups"][0]["app"] == proto.groups[0].app == "blue"
    names = {field.name for field in fleet_pb2.Rank.DESCRIPTOR.fields}
    for shown_rank, proto_rank in zip(
        shown["groups"][0]["ranks"], proto.groups[0].ranks, strict=True
    ):
        read = {
            name: list(value) if isinstance(shown_rank[name], list) else value
            for name in names
            for value in [getattr(proto_rank, name)]
        }
        assert read == {name: shown_rank[name] for name in names}


def test_proto_states_are_enums_and_none_is_missing():
    for state in MemberState:
        proto = FleetView(FleetSnapshot("r", (group(state),)), "m", 0).to_proto()
        name = fleet_pb2.MemberState.Name(proto.groups[0].state)
        assert name == f"MEMBER_STATE_{state.upper()}"


def test_proto_is_json_serializable_by_protobuf_too():
    assert json_format.MessageToJson(FleetView(READY, "m", 0).to_proto())


@pytest.mark.parametrize(
    ("snapshot", "draining", "ready", "word"),
    [
        pytest.param(READY, False, True, "", id="ready"),
        pytest.param(READY, True, False, "shutting down", id="draining"),
        pytest.param(FleetSnapshot("r"), False, False, "joined", id="nobody here"),
        pytest.param(
            FleetSnapshot("r", (group(MemberState.FENCED),)), False, False, "ready", id="fenced"
        ),
    ],
)
def test_readiness_says_why(snapshot, draining, ready, word):
    content = readiness(snapshot, draining=draining)
    assert content["ready"] is ready
    assert word in content["reason"]
    assert bool(content["reason"]) is not ready


def test_the_hottest_experts_are_named_with_their_layer_and_rank():
    layer = "model.layers.1.mlp.experts"
    busy = replace(
        rank(1), recent_experts=RecentExperts([LayerTokens(layer, (0, 0, 24) + (0,) * 5)])
    )
    idle = replace(rank(0), recent_experts=RecentExperts([LayerTokens(layer, (1,) * 8)]))
    fleet = FleetSnapshot("r1", (replace(group(MemberState.READY), ranks=(idle, busy)),))
    (shown,) = json.loads(json.dumps(FleetView(fleet, "m", 0).to_json()))["groups"]
    assert shown["hottest_experts"][0] == {
        "layer": layer, "expert": 10, "ranks": [1], "tokens": 24, "times_mean": 12.0
    }  # fmt: skip
    assert shown["expert_imbalance"] == [{"layers": "all", "experts": 12.0, "ranks": 1.5}]
    (proto,) = FleetView(fleet, "m", 0).to_proto().groups
    as_dict = json_format.MessageToDict(proto, preserving_proto_field_name=True)
    assert as_dict["expert_imbalance"] == shown["expert_imbalance"]
    assert as_dict["hottest_experts"][0] == shown["hottest_experts"][0] | {"tokens": "24"}


def test_only_ranks_with_a_page_of_their_own_are_targets():
    shown = replace(rank(1), metrics_address="10.0.0.5:9400")
    fleet = FleetSnapshot("r1", (replace(group(MemberState.READY), ranks=(rank(0), shown)),))
    assert metrics_targets(fleet) == [
        {"targets": ["10.0.0.5:9400"], "labels": {"group": "g0", "rank": "1"}}
    ]

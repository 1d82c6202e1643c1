"""FleetCollector: the metrics of groups and ranks."""

from prometheus_client import generate_latest

from serving.fleet.collector import fleet_registry
from serving.fleet.membership import FleetMembership
from serving.link.v1 import link_pb2
from tests.support.fleets import RecordingHandle, hello


def sample(text, name):
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith(name)
    }


def test_living_groups_are_shown_and_gone_ones_are_not():
    membership = FleetMembership()
    registry = fleet_registry(membership.snapshot)
    handles = [
        RecordingHandle(inflight_requests=3, outstanding_tokens=40),
        RecordingHandle(inflight_requests=3, outstanding_tokens=40),
    ]
    keys = []
    for rank, handle in enumerate(handles):
        experts = link_pb2.ExpertPlacement(local_ids=[2 * rank, 2 * rank + 1])
        keys.append(membership.join(hello(rank, epoch="e", experts=experts), handle))
        tokens = link_pb2.LayerExpertLoad(layer="a", tokens=[10 * (rank + 1), 20 * (rank + 1)])
        load = link_pb2.LoadSnapshot(
            health=link_pb2.LoadSnapshot.HEALTHY,
            experts=[tokens],
            prompt_tokens_total=70,
            busy_seconds_total=1.5,
            speculation=link_pb2.SpeculationCounts(proposed_tokens=9, accepted_tokens=7),
        )
        membership.report(keys[rank], handle, load)
    text = generate_latest(registry).decode()
    assert sample(text, 'moe_groups{state="ready"}') == {'moe_groups{state="ready"}': 1.0}
    assert list(sample(text, "moe_ranks_joined{").values()) == [2.0]
    assert list(sample(text, "moe_rank_inflight_requests{").values()) == [3.0, 3.0]
    assert sample(text, "moe_expert_tokens_total{") == {
        'moe_expert_tokens_total{group="g0",rank="0"}': 30.0,
        'moe_expert_tokens_total{group="g0",rank="1"}': 60.0,
    }
    assert sample(text, "moe_expert_imbalance_ratio{") == {
        'moe_expert_imbalance_ratio{group="g0",layers="all",over="experts"}': 40 * 4 / 90,
        'moe_expert_imbalance_ratio{group="g0",layers="all",over="ranks"}': 60 * 2 / 90,
    }
    assert list(sample(text, "moe_rank_prompt_tokens_total{").values()) == [70.0, 70.0]
    assert list(sample(text, "moe_rank_busy_seconds_total{").values()) == [1.5, 1.5]
    assert len(sample(text, "moe_rank_report_timestamp_seconds{")) == 2
    assert sample(text, "moe_rank_link_round_trip_seconds{") == {}, "no Pong came"
    assert list(sample(text, "moe_mtp_accepted_tokens_total{").values()) == [7.0, 7.0]
    for key, handle in zip(keys, handles, strict=True):
        membership.leave(key, handle, "gone")
    text = generate_latest(registry).decode()
    assert "g0" not in text
    assert list(sample(text, "moe_groups{").values()) == [0.0] * 4

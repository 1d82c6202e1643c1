"""The fleet's state for operators: JSON for /fleet, proto for GetFleet."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from serving import __version__
from serving.api.v1 import fleet_pb2
from serving.fleet.adapter_operations import AdapterStatus
from serving.fleet.expert_balance import hottest, imbalances
from serving.fleet.models import ModelStatus
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, MemberState, RankSnapshot

_STATES: dict[MemberState, fleet_pb2.MemberState] = {
    MemberState.JOINING: fleet_pb2.MEMBER_STATE_JOINING,
    MemberState.READY: fleet_pb2.MEMBER_STATE_READY,
    MemberState.DRAINING: fleet_pb2.MEMBER_STATE_DRAINING,
    MemberState.FENCED: fleet_pb2.MEMBER_STATE_FENCED,
    MemberState.GONE: fleet_pb2.MEMBER_STATE_GONE,
}


@dataclass(frozen=True, slots=True)
class PoolView:
    """The groups of one pool of a model."""

    name: str
    groups: int
    """Number of groups that have joined."""
    ready_groups: int
    """Number of groups that accept requests."""


@dataclass(frozen=True, slots=True)
class FleetView:
    """A snapshot of the fleet and of the router's state."""

    snapshot: FleetSnapshot
    model: str
    inflight_requests: int
    """Number of requests in this router, queued or placed on a rank."""
    draining: bool = False
    models: tuple[ModelStatus, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of /fleet, with the names and units of fleet.proto."""
        return {
            "router_id": self.snapshot.router_id,
            "model": self.model,
            "serving_version": __version__,
            "ready": self.snapshot.ready and not self.draining,
            "draining": self.draining,
            "inflight_requests": self.inflight_requests,
            "models": [
                asdict(status) | {"pools": [asdict(pool) for pool in self._pools(status)]}
                for status in self.models
            ],
            "groups": [_group_json(group) for group in self.snapshot.groups],
            "history": [_group_json(group) for group in self.snapshot.history],
        }

    def to_proto(self) -> fleet_pb2.GetFleetResponse:
        """Return the response to GetFleet; groups from the history come last."""
        groups = (*self.snapshot.groups, *self.snapshot.history)
        return fleet_pb2.GetFleetResponse(
            router_id=self.snapshot.router_id,
            model=self.model,
            serving_version=__version__,
            groups=[_group_proto(group) for group in groups],
            inflight_requests=self.inflight_requests,
            models=[
                fleet_pb2.ServedModel(
                    name=status.name,
                    aliases=status.aliases,
                    loaded=status.loaded,
                    queued_requests=status.queued_requests,
                    pools=[fleet_pb2.Pool(**asdict(pool)) for pool in self._pools(status)],
                    adapters=map(adapter_proto, status.adapters),
                )
                for status in self.models
            ],
        )

    def _pools(self, status: ModelStatus) -> list[PoolView]:
        """Return the pools of a model, including those without groups."""
        groups = [group for group in self.snapshot.groups if group.model == status.name]
        return [
            PoolView(
                name,
                sum(group.pool == name for group in groups),
                sum(group.pool == name and group.state is MemberState.READY for group in groups),
            )
            for name in status.pools
        ]


def adapter_proto(adapter: AdapterStatus) -> fleet_pb2.Adapter:
    """Return an adapter as a message."""
    return fleet_pb2.Adapter(**asdict(adapter))


def metrics_targets(snapshot: FleetSnapshot) -> list[dict[str, Any]]:
    """Return the ranks' metrics addresses in the format of Prometheus HTTP service discovery."""
    return [
        {
            "targets": [rank.metrics_address],
            "labels": {"group": group.group_id, "rank": str(rank.rank)},
        }
        for group in snapshot.groups
        for rank in group.ranks
        if rank.metrics_address
    ]


def readiness(snapshot: FleetSnapshot, *, draining: bool) -> dict[str, Any]:
    """Return the content of /readyz: whether this router can serve, or the reason why not."""
    states = {group.group_id: f"{group.state}: {group.reason}" for group in snapshot.groups}
    if draining:
        reason = "this router is shutting down"
    elif snapshot.ready:
        return {"ready": True, "reason": "", "groups": states}
    elif states:
        reason = "no group is ready"
    else:
        reason = "no group has joined this router yet"
    return {"ready": False, "reason": reason, "groups": states}


def _group_json(group: GroupSnapshot) -> dict[str, Any]:
    return {
        "group_id": group.group_id,
        "epoch": group.epoch,
        "app": group.app,
        "model": group.model,
        "pool": group.pool,
        "state": group.state.value,
        "reason": group.reason,
        "since_unix_seconds": group.since,
        "world_size": group.world_size,
        "total_experts": group.total_experts,
        "expert_imbalance": [asdict(found) for found in imbalances(group)],
        "hottest_experts": [asdict(hot) for hot in hottest(group)],
        "ranks": [_rank_json(rank) for rank in group.ranks],
    }


def _rank_json(rank: RankSnapshot) -> dict[str, Any]:
    load = rank.load
    return {
        "rank": rank.rank,
        "node": rank.node,
        "pid": rank.pid,
        "healthy": rank.healthy,
        "health_reason": rank.health_reason,
        "draining": rank.draining,
        "joined_at_unix_seconds": rank.joined_at,
        "engine_version": rank.engine_version,
        "tensor_parallel_size": rank.tensor_parallel_size,
        "local_expert_ids": list(rank.local_expert_ids),
        "expert_tokens": list(load.expert_tokens),
        "inflight_requests": rank.inflight_requests,
        "outstanding_tokens": rank.outstanding_tokens,
        "running_requests": load.running_requests,
        "waiting_requests": load.waiting_requests,
        "kv_usage": load.kv_usage,
        "prompt_tokens_total": load.prompt_tokens_total,
        "generated_tokens_total": load.generated_tokens_total,
        "engine_steps_total": load.engine_steps_total,
        "since_last_step_seconds": load.since_last_step,
        "step_seconds": load.step_seconds,
        "mtp_proposed_tokens_total": load.mtp_proposed_tokens,
        "mtp_accepted_tokens_total": load.mtp_accepted_tokens,
        "resident_bytes": load.resident_bytes,
        "adapter_slots": rank.adapter_slots,
        "resident_adapters": _names(load.adapters),
        "adapter_requests_total": load.adapter_requests_total,
        "adapter_loads_total": load.adapter_loads_total,
        "adapter_evictions_total": load.adapter_evictions_total,
        "round_trip_seconds": rank.round_trip,
        "reported_at_unix_seconds": rank.reported_at,
        "metrics_address": rank.metrics_address,
    }


def _group_proto(group: GroupSnapshot) -> fleet_pb2.Group:
    return fleet_pb2.Group(
        group_id=group.group_id,
        epoch=group.epoch,
        app=group.app,
        model=group.model,
        pool=group.pool,
        state=_STATES[group.state],
        reason=group.reason,
        since_unix_seconds=group.since,
        world_size=group.world_size,
        total_experts=group.total_experts,
        ranks=[_rank_proto(rank) for rank in group.ranks],
        expert_imbalance=[
            fleet_pb2.ExpertImbalance(**asdict(found)) for found in imbalances(group)
        ],
        hottest_experts=[fleet_pb2.HotExpert(**asdict(hot)) for hot in hottest(group)],
    )


def _rank_proto(rank: RankSnapshot) -> fleet_pb2.Rank:
    load = rank.load
    return fleet_pb2.Rank(
        rank=rank.rank,
        node=rank.node,
        pid=rank.pid,
        tensor_parallel_size=rank.tensor_parallel_size,
        local_expert_ids=rank.local_expert_ids,
        expert_tokens=load.expert_tokens,
        inflight_requests=rank.inflight_requests,
        outstanding_tokens=rank.outstanding_tokens,
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        kv_usage=load.kv_usage,
        prompt_tokens_total=load.prompt_tokens_total,
        generated_tokens_total=load.generated_tokens_total,
        engine_steps_total=load.engine_steps_total,
        mtp_proposed_tokens_total=load.mtp_proposed_tokens,
        mtp_accepted_tokens_total=load.mtp_accepted_tokens,
        engine_version=rank.engine_version,
        draining=rank.draining,
        health_reason=rank.health_reason,
        resident_bytes=load.resident_bytes,
        metrics_address=rank.metrics_address,
        adapter_slots=rank.adapter_slots,
        resident_adapters=_names(load.adapters),
        adapter_requests_total=load.adapter_requests_total,
        adapter_loads_total=load.adapter_loads_total,
        adapter_evictions_total=load.adapter_evictions_total,
    )


def _names(keys: Iterable[str]) -> list[str]:
    """Return the names of adapters, without the digests of their files."""
    return [key.rpartition("@")[0] for key in keys]

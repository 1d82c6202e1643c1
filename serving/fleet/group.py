"""A group and its ranks as the roster keeps them, and what a snapshot shows of them."""

import math
from dataclasses import dataclass, field, replace
from operator import is_

from serving.clock import Clock
from serving.fleet.expert_window import ExpertWindow
from serving.fleet.rank_handle import RankHandle
from serving.link.v1 import link_pb2
from serving.routing.snapshot import GroupSnapshot, MemberState, RankLoad, RankSnapshot

_MOST = 2**63 - 1
"""Of a sum of counters, which the API has as a 64-bit number."""


@dataclass(slots=True)
class Member:
    """A joined rank."""

    hello: link_pb2.Hello
    handle: RankHandle
    snapshot: RankSnapshot
    """All but the handle's numbers, which change with every frame."""
    asked: bool = False
    """The canary is on its way."""
    proven: bool = False
    """It has generated the canary's token since the group was last complete."""
    experts: ExpertWindow = field(default_factory=ExpertWindow)
    """What its experts computed lately."""
    shown: tuple[RankSnapshot, RankSnapshot] | None = None
    """``snapshot`` when it was last frozen with the handle's numbers, and what came of it."""


@dataclass(slots=True)
class Group:
    """All ranks of one epoch."""

    group_id: str
    epoch: str
    world_size: int
    state: MemberState
    reason: str
    since: float
    started: float = 0.0
    """When its gang was started; 0 = not told."""
    total_experts: int = 0
    app: str = ""
    """What deployed it; empty: not told."""
    cordoned: str = ""
    """Why an operator took it out of service; empty: he did not."""
    members: dict[int, Member] = field(default_factory=dict)
    shown: GroupSnapshot | None = None
    """As it was last frozen."""


def waits_for(group: Group) -> str:
    """Say what keeps the group from being ready, the canary apart; empty: nothing."""
    missing = [rank for rank in range(group.world_size) if rank not in group.members]
    if missing:
        return (
            f"{len(group.members)} of {group.world_size} ranks joined, "
            f"waits for {', '.join(map(str, missing[:8]))}{' …' if len(missing) > 8 else ''}"  # noqa: PLR2004  only shortens the text
        )
    ill = [rank for rank, member in sorted(group.members.items()) if not member.snapshot.healthy]
    if ill:
        return f"waits for a healthy report of rank {', '.join(map(str, ill[:8]))}"
    if any(member.snapshot.draining for member in group.members.values()):
        return "drains"
    if group.cordoned:
        return f"cordoned: {group.cordoned}"
    return ""


def unproven(group: Group) -> list[Member]:
    """Return the ranks that have still to generate the canary's token."""
    return [member for _, member in sorted(group.members.items()) if not member.proven]


def group_snapshot(group: Group) -> GroupSnapshot:
    """Freeze the group as it is now; what has not changed is not made anew."""
    ranks = tuple(_rank_snapshot(member) for _, member in sorted(group.members.items()))
    shown = group.shown
    if (
        shown is not None
        and shown.state is group.state
        and shown.since == group.since
        and shown.reason == group.reason
        and shown.total_experts == group.total_experts
        and len(shown.ranks) == len(ranks)
        and all(map(is_, shown.ranks, ranks))
    ):
        return shown
    group.shown = GroupSnapshot(
        group.group_id,
        group.epoch,
        group.state,
        group.reason,
        group.since,
        group.world_size,
        group.total_experts,
        ranks,
        group.app,
    )
    return group.shown


def _rank_snapshot(member: Member) -> RankSnapshot:
    handle = member.handle
    if member.shown is not None:
        known, shown = member.shown
        if (
            known is member.snapshot
            and shown.inflight_requests == handle.inflight_requests
            and shown.outstanding_tokens == handle.outstanding_tokens
            and shown.round_trip == handle.round_trip
        ):
            return shown
    shown = replace(
        member.snapshot,
        inflight_requests=handle.inflight_requests,
        outstanding_tokens=handle.outstanding_tokens,
        round_trip=handle.round_trip,
    )
    member.shown = member.snapshot, shown
    return shown


def first_snapshot(hello: link_pb2.Hello, clock: Clock) -> RankSnapshot:
    """Return what is known of a rank before its first report."""
    capacity = hello.capacity
    return RankSnapshot(
        group_id=hello.group_id,
        epoch=hello.epoch,
        rank=hello.rank,
        healthy=False,
        health_reason="no report yet",
        node=hello.node,
        pid=hello.pid,
        engine_version=hello.engine_version,
        serving_version=hello.serving_version,
        tensor_parallel_size=capacity.tensor_parallel_size or 1,
        max_model_len=capacity.max_model_len,
        max_num_seqs=capacity.max_num_seqs,
        kv_blocks=capacity.kv_blocks,
        kv_block_size=capacity.kv_block_size,
        local_expert_ids=tuple(hello.experts.local_ids),
        metrics_address=hello.metrics_address,
        joined_at=clock.time(),
    )


def load_of(load: link_pb2.LoadSnapshot) -> RankLoad:
    """Turn a report into what routing sees, numbers that pages and metrics can show."""
    layers = [layer.tokens for layer in load.experts]
    return RankLoad(
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        kv_usage=_finite(load.kv_usage),
        prompt_tokens_total=load.prompt_tokens_total,
        generated_tokens_total=load.generated_tokens_total,
        engine_steps_total=load.engine_steps_total,
        since_last_step=load.since_last_step_ms / 1000,
        step_seconds=_finite(load.step_seconds),
        busy_seconds_total=_finite(load.busy_seconds_total),
        expert_tokens=tuple(min(sum(tokens), _MOST) for tokens in zip(*layers, strict=False)),
        mtp_draft_steps=load.speculation.draft_steps,
        mtp_proposed_tokens=load.speculation.proposed_tokens,
        mtp_accepted_tokens=load.speculation.accepted_tokens,
        resident_bytes=load.resident_bytes,
    )


def _finite(value: float) -> float:
    """Return a number as it is; NaN and infinity, which JSON has no form for, as 0."""
    return value if math.isfinite(value) else 0.0

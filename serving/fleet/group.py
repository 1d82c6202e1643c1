"""One group: its states, its ranks, and the snapshot used by status pages."""

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from operator import is_
from typing import Any

from serving.clock import Clock
from serving.fleet.candidates import CandidateRank
from serving.fleet.expert_balance import ExpertWindow
from serving.fleet.rank_handle import RankHandle
from serving.link.v1 import link_pb2
from serving.routing.snapshot import GroupSnapshot, MemberState, RankLoad, RankSnapshot

_MAX_COUNTER = 2**63 - 1
"""Cap on the sum of counters, which is a signed 64-bit number in the API."""


class GroupEvent(StrEnum):
    """Events in the life of a group."""

    COMPLETE = "complete"
    """All ranks of the epoch have joined, are healthy, and have generated the canary's token."""
    DRAIN = "drain"
    """A rank stopped accepting new requests, or an operator cordoned the group."""
    UNCORDON = "uncordon"
    """An operator uncordoned the group."""
    FAULT = "fault"
    """A rank was lost, or reported that it failed or stalled."""
    EMPTY = "empty"
    """The last rank left."""
    REPLACED = "replaced"
    """A newer epoch of the group joined."""


_S, _E = MemberState, GroupEvent

TRANSITIONS: dict[tuple[MemberState, GroupEvent], MemberState] = {
    (_S.JOINING, _E.COMPLETE): _S.READY,
    (_S.JOINING, _E.DRAIN): _S.DRAINING,
    (_S.JOINING, _E.FAULT): _S.FENCED,
    (_S.JOINING, _E.EMPTY): _S.GONE,
    (_S.JOINING, _E.REPLACED): _S.GONE,
    (_S.READY, _E.DRAIN): _S.DRAINING,
    (_S.READY, _E.FAULT): _S.FENCED,
    (_S.READY, _E.EMPTY): _S.GONE,
    (_S.READY, _E.REPLACED): _S.GONE,
    (_S.DRAINING, _E.UNCORDON): _S.JOINING,
    (_S.DRAINING, _E.FAULT): _S.FENCED,
    (_S.DRAINING, _E.EMPTY): _S.GONE,
    (_S.DRAINING, _E.REPLACED): _S.GONE,
    # After a broken link or a temporary stall: all ranks of the same epoch are healthy again.
    (_S.FENCED, _E.COMPLETE): _S.READY,
    (_S.FENCED, _E.EMPTY): _S.GONE,
    (_S.FENCED, _E.REPLACED): _S.GONE,
}
"""Maps state and event to the next state. Pairs not listed leave the state unchanged; GONE is
final."""


@dataclass(slots=True)
class Member:
    """A joined rank."""

    hello: link_pb2.Hello
    handle: RankHandle
    snapshot: RankSnapshot
    """Snapshot of the rank, without the handle's numbers, which change with every frame; changed
    by ``update``."""
    candidate: CandidateRank = field(init=False)
    """The rank as routing sees it."""
    canary_sent: bool = False
    """Whether a canary has been sent since the rank was last unhealthy or the group last fenced."""
    proven: bool = False
    """Whether the rank has generated a canary's token since the group was last incomplete."""
    experts: ExpertWindow = field(default_factory=ExpertWindow)
    shown: tuple[RankSnapshot, RankSnapshot] | None = None
    """Cached ``snapshot`` of the last freeze, and the frozen copy with the handle's numbers."""

    def __post_init__(self) -> None:
        """Make the rank visible to routing."""
        self.candidate = CandidateRank(self.snapshot, self.handle)

    def update(self, **changes: Any) -> None:
        """Change fields of the snapshot, and update the fields that routing sees."""
        self.snapshot = replace(self.snapshot, **changes)
        self.candidate.update(self.snapshot)


@dataclass(slots=True)
class Group:
    """All ranks of one epoch; fields as in ``GroupSnapshot``."""

    group_id: str
    epoch: str
    world_size: int
    state: MemberState
    reason: str
    since: float
    started: float = 0.0
    """Start time of the group's epoch, seconds since the Unix epoch; 0 if unknown."""
    total_experts: int = 0
    app: str = ""
    model: str = ""
    pool: str = ""
    cordoned: str = ""
    """The operator's reason for a cordon; empty if not cordoned."""
    members: dict[int, Member] = field(default_factory=dict)
    """Joined ranks, by rank number."""
    shown: GroupSnapshot | None = None
    """The last snapshot, cached."""


def waits_for(group: Group) -> str:
    """Return what prevents the group from being ready, except canaries; empty if nothing does."""
    missing = [rank for rank in range(group.world_size) if rank not in group.members]
    if missing:
        return (
            f"{len(group.members)} of {group.world_size} ranks joined, "
            f"waiting for rank {', '.join(map(str, missing[:8]))}{' …' if len(missing) > 8 else ''}"  # noqa: PLR2004  only shortens the text
        )
    ill = [rank for rank, member in sorted(group.members.items()) if not member.snapshot.healthy]
    if ill:
        return f"waiting for a healthy report from rank {', '.join(map(str, ill[:8]))}"
    if any(member.snapshot.draining for member in group.members.values()):
        return "draining"
    if group.cordoned:
        return f"cordoned: {group.cordoned}"
    return ""


def unproven(group: Group) -> list[Member]:
    """Return the ranks that have not generated the canary's token."""
    return [member for _, member in sorted(group.members.items()) if not member.proven]


def group_snapshot(group: Group) -> GroupSnapshot:
    """Return a frozen snapshot of the group; unchanged parts of the last snapshot are reused."""
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
        group.model,
        group.pool,
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
    """Build the snapshot of a rank that has not reported its load yet."""
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
        adapter_slots=hello.adapters.slots,
        metrics_address=hello.metrics_address,
        joined_at=clock.time(),
    )


def load_of(load: link_pb2.LoadSnapshot) -> RankLoad:
    """Convert a load report received on the link."""
    layers = [layer.tokens for layer in load.experts]
    adapters = load.adapters
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
        expert_tokens=tuple(
            min(sum(tokens), _MAX_COUNTER) for tokens in zip(*layers, strict=False)
        ),
        mtp_proposed_tokens=load.speculation.proposed_tokens,
        mtp_accepted_tokens=load.speculation.accepted_tokens,
        resident_bytes=load.resident_bytes,
        adapters=tuple(adapters.resident),
        adapter_requests_total=adapters.requests_total,
        adapter_loads_total=adapters.loads_total,
        adapter_evictions_total=adapters.evictions_total,
        adapter_failures_total=adapters.failures_total,
    )


def _finite(value: float) -> float:
    """Return the value, or 0 for NaN and infinity, which JSON cannot represent."""
    return value if math.isfinite(value) else 0.0

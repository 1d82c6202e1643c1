"""Who is a member: the states of a group, their transitions as one table, and the roster.

No I/O and no waiting is done here. A rank is a member while its link lives; a group counts as
one failure domain, because expert-parallel collectives hang when one rank is lost.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from typing_extensions import override

from serving.clock import Clock, SystemClock
from serving.errors import LinkRefused
from serving.link.v1 import link_pb2
from serving.routing.snapshot import (
    FleetSnapshot,
    GroupSnapshot,
    MemberState,
    RankLoad,
    RankSnapshot,
)
from serving.settings import FleetSettings
from serving.telemetry import metrics

if TYPE_CHECKING:
    from serving.fleet.stream import RequestStream


class GroupEvent(StrEnum):
    """What can happen to a group."""

    COMPLETE = "complete"
    """All ranks of the epoch are joined and healthy."""
    DRAIN = "drain"
    """A rank said that it takes no new work."""
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
    (_S.DRAINING, _E.FAULT): _S.FENCED,
    (_S.DRAINING, _E.EMPTY): _S.GONE,
    (_S.DRAINING, _E.REPLACED): _S.GONE,
    # A cut link or a passing stall: the same ranks are back, all of them, and healthy.
    (_S.FENCED, _E.COMPLETE): _S.READY,
    (_S.FENCED, _E.EMPTY): _S.GONE,
    (_S.FENCED, _E.REPLACED): _S.GONE,
}
"""Pairs that are not here leave the state as it is. Nothing leaves GONE."""


class JoinRefused(LinkRefused):
    """The rank may not join; ``code`` goes into the Refusal."""

    def __init__(self, code: link_pb2.Refusal.Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class RankHandle(Protocol):
    """The way to a joined rank (``rank_link.RankLink``, or a fake in tests)."""

    @property
    def inflight_requests(self) -> int:
        """Requests on the rank now."""
        ...

    @property
    def outstanding_tokens(self) -> int:
        """Tokens still to compute for them."""
        ...

    @property
    def round_trip(self) -> float | None:
        """Seconds from Ping to Pong, last seen."""
        ...

    def submit(self, stream: "RequestStream") -> None:
        """Send a request; its deltas go to ``stream``. Does not wait.

        Raises:
            GroupLost: the link is closed.
            Overloaded: its send queue is full.
            InvalidRequest: the request is larger than a frame may be.
        """
        ...

    def release(self, stream: "RequestStream") -> None:
        """Forget a request; the rank is told to abort it unless it is finished."""
        ...

    def fence(self, reason: str) -> None:
        """Fail all requests on the rank with GroupLost and abort them there."""
        ...

    def close(self, reason: str) -> None:
        """End the link."""
        ...


@dataclass(frozen=True, slots=True)
class MemberKey:
    """One rank of one epoch of one group."""

    group_id: str
    epoch: str
    rank: int

    @override
    def __str__(self) -> str:
        return f"rank {self.rank} of group {self.group_id} (epoch {self.epoch})"


@dataclass(slots=True)
class _Member:
    hello: link_pb2.Hello
    handle: RankHandle
    snapshot: RankSnapshot
    """All but the handle's numbers, which change with every frame."""


@dataclass(slots=True)
class _Group:
    group_id: str
    epoch: str
    world_size: int
    state: MemberState
    reason: str
    since: float
    started: float = 0.0
    """When its gang was started; 0 = not told."""
    total_experts: int = 0
    members: dict[int, _Member] = field(default_factory=dict)


class Roster:
    """The router's picture of its fleet. All calls come from one event loop."""

    def __init__(
        self,
        settings: FleetSettings | None = None,
        clock: Clock | None = None,
        router_id: str | None = None,
    ) -> None:
        self._settings = settings or FleetSettings()
        self._clock = clock or SystemClock()
        self.router_id = router_id or uuid4().hex[:8]
        self._groups: dict[str, _Group] = {}
        self._history: deque[GroupSnapshot] = deque(maxlen=self._settings.history_groups)
        # Epochs that another replaced, for gangs that do not say when they started: a left-over
        # rank may not push the living group out. Bounded; by then such a rank is long dead.
        self._replaced: deque[tuple[str, str]] = deque(maxlen=1024)
        self._listeners: list[Callable[[], None]] = []

    # -- what happens -------------------------------------------------------------------

    def join(self, hello: link_pb2.Hello, handle: RankHandle) -> MemberKey:
        """Take in a rank whose Hello was checked for itself.

        Raises:
            JoinRefused: it does not fit the ranks that are here.
        """
        key = MemberKey(hello.group_id, hello.epoch, hello.rank)
        group = self._groups.get(hello.group_id)
        if group is not None and group.epoch == hello.epoch:
            if group.world_size != hello.world_size:
                raise JoinRefused(
                    link_pb2.Refusal.BAD_HELLO,
                    f"{key} says world size {hello.world_size}, the ranks that joined before "
                    f"say {group.world_size}: start all ranks with the same settings",
                )
            other = group.members[hello.rank].hello if hello.rank in group.members else None
            if other is not None and _same_process(hello, other):
                # It knows before us that its old connection is dead.
                old = group.members[hello.rank].handle
                self.leave(key, old, "its process dialled anew")
                old.close("its process dialled anew")
                return self.join(hello, handle)
            if other is not None:
                raise JoinRefused(
                    link_pb2.Refusal.DUPLICATE_RANK,
                    f"{key} is already joined from {other.node or 'an unnamed node'} "
                    f"(pid {other.pid}): stop one of them, or give them different ranks",
                )
        elif group is not None:
            if self._is_older(hello, group):
                raise JoinRefused(
                    link_pb2.Refusal.BAD_HELLO,
                    f"epoch {hello.epoch} of group {hello.group_id} was replaced by a newer "
                    f"one ({group.epoch}): this rank is left over, stop it",
                )
            self._replaced.append((group.group_id, group.epoch))
            self._apply(group, GroupEvent.REPLACED, f"replaced by epoch {hello.epoch}")
            group = None
        if group is None:
            group = _Group(
                hello.group_id,
                hello.epoch,
                hello.world_size,
                MemberState.JOINING,
                "",
                self._clock.time(),
                hello.epoch_started_unix_seconds,
            )
            self._groups[hello.group_id] = group
        group.total_experts = max(group.total_experts, hello.experts.total)
        group.members[hello.rank] = _Member(hello, handle, _first_snapshot(hello, self._clock))
        self._settle(group)
        self._changed()
        return key

    def leave(self, key: MemberKey, handle: RankHandle, reason: str) -> None:
        """Note that a rank's link ended. Ignored if it is no member any more."""
        found = self._find(key, handle)
        if found is None:
            return
        group, _ = found
        del group.members[key.rank]
        # Its own requests fail even when the group's state has no transition for this.
        handle.fence(f"{key} was lost: {reason}")
        if group.members:
            self._apply(group, GroupEvent.FAULT, f"rank {key.rank} was lost: {reason}")
            self._settle(group)
        else:
            self._apply(group, GroupEvent.EMPTY, f"its last rank was lost: {reason}")
        self._changed()

    def report(self, key: MemberKey, handle: RankHandle, load: link_pb2.LoadSnapshot) -> None:
        """Take a rank's load and health."""
        found = self._find(key, handle)
        if found is None:
            return
        group, member = found
        before = (group.state, group.reason)
        healthy = load.health == link_pb2.LoadSnapshot.HEALTHY
        member.snapshot = replace(
            member.snapshot,
            healthy=healthy,
            health_reason=load.health_reason,
            load=_load(load),
        )
        if load.health in {link_pb2.LoadSnapshot.FAILED, link_pb2.LoadSnapshot.STALLED}:
            what = "stalled" if load.health == link_pb2.LoadSnapshot.STALLED else "failed"
            self._apply(
                group,
                GroupEvent.FAULT,
                f"rank {key.rank} {what}: {load.health_reason or 'no reason given'}",
            )
        self._settle(group)
        if (group.state, group.reason) != before:
            self._changed()

    def drain(self, key: MemberKey, handle: RankHandle, reason: str) -> None:
        """Note that a rank takes no new work; its whole group gets none from here on."""
        found = self._find(key, handle)
        if found is None:
            return
        group, member = found
        member.snapshot = replace(member.snapshot, draining=True)
        self._apply(group, GroupEvent.DRAIN, f"rank {key.rank} drains: {reason or 'asked to'}")
        self._changed()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after each change of a group's state or ranks; returns the way off."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- what is ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether any group can take work."""
        return any(group.state is MemberState.READY for group in self._groups.values())

    def handle(self, group_id: str, epoch: str, rank: int) -> RankHandle | None:
        """Return the way to a rank, or none if it is no member any more."""
        group = self._groups.get(group_id)
        if group is None or group.epoch != epoch or rank not in group.members:
            return None
        return group.members[rank].handle

    def snapshot(self) -> FleetSnapshot:
        """Return the fleet as it is now, frozen."""
        return FleetSnapshot(
            self.router_id,
            tuple(_group_snapshot(self._groups[name]) for name in sorted(self._groups)),
            tuple(reversed(self._history)),
        )

    # -- rules --------------------------------------------------------------------------

    def _find(self, key: MemberKey, handle: RankHandle) -> tuple[_Group, _Member] | None:
        group = self._groups.get(key.group_id)
        if group is None or group.epoch != key.epoch:
            return None
        member = group.members.get(key.rank)
        if member is None or member.handle is not handle:
            return None
        return group, member

    def _is_older(self, hello: link_pb2.Hello, group: _Group) -> bool:
        """Whether a newcomer of another epoch is a left-over rather than the successor."""
        if hello.epoch_started_unix_seconds and group.started:
            return hello.epoch_started_unix_seconds < group.started
        return (hello.group_id, hello.epoch) in self._replaced

    def _settle(self, group: _Group) -> None:
        """See whether the group is complete, and say what it waits for if not."""
        waits = _waits_for(group)
        if not waits:
            self._apply(group, GroupEvent.COMPLETE, f"all {group.world_size} ranks are healthy")
        elif group.state is MemberState.JOINING:
            group.reason = waits

    def _apply(self, group: _Group, event: GroupEvent, reason: str) -> None:
        after = TRANSITIONS.get((group.state, event))
        if after is None:
            return
        group.state, group.reason, group.since = after, reason, self._clock.time()
        if after is MemberState.FENCED:
            metrics.GROUPS_FENCED.inc()
            for member in group.members.values():
                member.handle.fence(f"group {group.group_id} was fenced: {reason}")
        elif after is MemberState.GONE:
            self._history.append(_group_snapshot(group))
            if self._groups.get(group.group_id) is group:
                del self._groups[group.group_id]
            for member in group.members.values():
                member.handle.fence(f"group {group.group_id} is gone: {reason}")
                member.handle.close(reason)

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _same_process(one: link_pb2.Hello, other: link_pb2.Hello) -> bool:
    return bool(one.node and one.pid) and (one.node, one.pid) == (other.node, other.pid)


def _waits_for(group: _Group) -> str:
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
    return ""


def _group_snapshot(group: _Group) -> GroupSnapshot:
    return GroupSnapshot(
        group.group_id,
        group.epoch,
        group.state,
        group.reason,
        group.since,
        group.world_size,
        group.total_experts,
        tuple(
            replace(
                member.snapshot,
                inflight_requests=member.handle.inflight_requests,
                outstanding_tokens=member.handle.outstanding_tokens,
                round_trip=member.handle.round_trip,
            )
            for _, member in sorted(group.members.items())
        ),
    )


def _first_snapshot(hello: link_pb2.Hello, clock: Clock) -> RankSnapshot:
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
        joined_at=clock.time(),
    )


def _load(load: link_pb2.LoadSnapshot) -> RankLoad:
    layers = [layer.tokens for layer in load.experts]
    return RankLoad(
        running_requests=load.running_requests,
        waiting_requests=load.waiting_requests,
        kv_usage=load.kv_usage,
        prompt_tokens_total=load.prompt_tokens_total,
        generated_tokens_total=load.generated_tokens_total,
        engine_steps_total=load.engine_steps_total,
        since_last_step=load.since_last_step_ms / 1000,
        step_seconds=load.step_seconds,
        expert_tokens=tuple(map(sum, zip(*layers, strict=False))) if layers else (),
        mtp_draft_steps=load.speculation.draft_steps,
        mtp_proposed_tokens=load.speculation.proposed_tokens,
        mtp_accepted_tokens=load.speculation.accepted_tokens,
        resident_bytes=load.resident_bytes,
    )

"""Fleet membership: the groups and ranks joined to this router, and their states.

Does no I/O and never waits. A rank is a member while its link is open. A group is one failure
domain, because expert-parallel collectives hang when one rank is lost. A group accepts requests
once all ranks of one epoch have joined, report themselves healthy, and have each generated a token
for the canary.
"""

from collections import deque
from collections.abc import Callable
from uuid import uuid4

from serving.clock import Clock, SystemClock
from serving.errors import GroupNotFound, LinkRefused
from serving.fleet.canary import Canary
from serving.fleet.candidates import Candidates
from serving.fleet.group import (
    TRANSITIONS,
    Group,
    GroupEvent,
    Member,
    first_snapshot,
    group_snapshot,
    load_of,
    unproven,
    waits_for,
)
from serving.fleet.rank_handle import RankHandle
from serving.link.v1 import link_pb2
from serving.routing.adapter_index import AdapterIndex
from serving.routing.prefix_index import PrefixIndex
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, MemberState, RankId
from serving.settings import FleetSettings
from serving.telemetry import metrics


class JoinRefused(LinkRefused):
    """The router rejects a rank; ``code`` is sent in the Refusal message."""

    def __init__(self, code: link_pb2.Refusal.Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class FleetMembership:
    """The groups and ranks of one router. Not thread-safe: all calls come from one event loop."""

    def __init__(
        self,
        settings: FleetSettings | None = None,
        clock: Clock | None = None,
        router_id: str | None = None,
        prefixes: PrefixIndex | None = None,
        canary: Canary | None = None,
    ) -> None:
        """Start without groups.

        Args:
            settings: Settings with the length of the history.
            clock: Source of time; the system clock by default.
            router_id: Prefix of request ids; random by default.
            prefixes: Index of the ranks' KV caches, filled by links and read by routing.
            canary: Sends a canary to each rank before its group is ready. If omitted, no canaries
                are sent.
        """
        self._settings = settings or FleetSettings()
        self._clock = clock or SystemClock()
        self.router_id = router_id or uuid4().hex[:8]
        self.prefixes = prefixes if prefixes is not None else PrefixIndex()
        self.adapters = AdapterIndex()
        """Which ranks of ready groups hold which LoRA adapters, for routing."""
        self._groups: dict[str, Group] = {}
        self.candidates = Candidates()
        """The ready groups, for routing."""
        self._history: deque[GroupSnapshot] = deque(maxlen=self._settings.history_groups)
        # Replaced epochs, for ranks that do not report their epoch's start time: a left-over rank
        # must not replace the current group. The number is bounded, because such a rank exits long
        # before 1024 further replacements.
        self._replaced: deque[tuple[str, str]] = deque(maxlen=1024)
        self._listeners: list[Callable[[], None]] = []
        self._canary = canary

    # -- events of ranks ----------------------------------------------------------------

    def join(self, hello: link_pb2.Hello, handle: RankHandle) -> RankId:
        """Add a rank whose Hello has passed ``check_hello``.

        Raises:
            JoinRefused: The rank does not match the ranks that have joined.
        """
        rank_id = RankId(hello.group_id, hello.epoch, hello.rank)
        group = self._groups.get(hello.group_id)
        if group is not None and group.pool != hello.pool:
            raise JoinRefused(
                link_pb2.Refusal.BAD_HELLO,
                f"{rank_id} belongs to pool {hello.pool!r}, the group has joined in pool "
                f"{group.pool!r}: group ids must be unique in the fleet",
            )
        if group is not None and group.epoch == hello.epoch:
            if group.world_size != hello.world_size:
                raise JoinRefused(
                    link_pb2.Refusal.BAD_HELLO,
                    f"{rank_id} has world size {hello.world_size}, the ranks that joined before "
                    f"have {group.world_size}: start all ranks with the same settings",
                )
            other = group.members[hello.rank].hello if hello.rank in group.members else None
            if other is not None and _same_process(hello, other):
                # The rank has detected the loss of its old connection before the router has.
                old = group.members[hello.rank].handle
                self.leave(rank_id, old, "its process reconnected")
                old.close("its process reconnected")
                return self.join(hello, handle)
            if other is not None:
                raise JoinRefused(
                    link_pb2.Refusal.DUPLICATE_RANK,
                    f"{rank_id} has already joined from {other.node or 'an unnamed node'} "
                    f"(pid {other.pid}): stop one of them, or assign different ranks",
                )
        elif group is not None:
            if self._is_older(hello, group):
                raise JoinRefused(
                    link_pb2.Refusal.BAD_HELLO,
                    f"epoch {hello.epoch} of group {hello.group_id} was replaced by a newer "
                    f"one ({group.epoch}): this rank is stale, stop it",
                )
            self._replaced.append((group.group_id, group.epoch))
            self._apply(group, GroupEvent.REPLACED, f"replaced by epoch {hello.epoch}")
            group = None
        if group is None:
            group = Group(
                hello.group_id,
                hello.epoch,
                hello.world_size,
                MemberState.JOINING,
                "",
                self._clock.time(),
                hello.epoch_started_unix_seconds,
                app=hello.app,
                model=hello.model,
                pool=hello.pool,
            )
            self._groups[hello.group_id] = group
        group.total_experts = max(group.total_experts, hello.experts.total)
        group.members[hello.rank] = Member(hello, handle, first_snapshot(hello, self._clock))
        self._settle(group)
        self._changed()
        return rank_id

    def leave(self, rank_id: RankId, handle: RankHandle, reason: str) -> None:
        """Remove a rank whose link ended; ignored if the handle is no longer the member's."""
        found = self._find(rank_id, handle)
        if found is None:
            return
        group, _ = found
        del group.members[rank_id.rank]
        self.adapters.forget(rank_id)
        # The rank's own requests fail even if the group's state does not change.
        planned = group.state is MemberState.DRAINING
        handle.fence(f"{rank_id} was lost: {reason}", planned=planned)
        if group.members:
            self._apply(group, GroupEvent.FAULT, f"rank {rank_id.rank} was lost: {reason}")
            self._settle(group)
        else:
            self._apply(group, GroupEvent.EMPTY, f"its last rank was lost: {reason}")
        self._changed()

    def report(self, rank_id: RankId, handle: RankHandle, load: link_pb2.LoadSnapshot) -> None:
        """Record a rank's load and health."""
        found = self._find(rank_id, handle)
        if found is None:
            return
        group, member = found
        before = (group.state, group.reason)
        healthy = load.health == link_pb2.LoadSnapshot.HEALTHY
        member.update(
            healthy=healthy,
            health_reason=load.health_reason,
            load=load_of(load),
            recent_experts=member.experts.update(load.experts, self._clock.monotonic()),
            reported_at=self._clock.time(),
        )
        if load.HasField("adapters"):
            self.adapters.report(rank_id, load.adapters.resident)
        if not healthy:
            member.proven = member.canary_sent = False
        if load.health in {link_pb2.LoadSnapshot.FAILED, link_pb2.LoadSnapshot.STALLED}:
            what = "stalled" if load.health == link_pb2.LoadSnapshot.STALLED else "failed"
            self._apply(
                group,
                GroupEvent.FAULT,
                f"rank {rank_id.rank} {what}: {load.health_reason or 'no reason given'}",
            )
        self._settle(group)
        if (group.state, group.reason) != before:
            self._changed()

    def drain(self, rank_id: RankId, handle: RankHandle, reason: str) -> None:
        """Stop routing to the group of a rank that accepts no new requests."""
        found = self._find(rank_id, handle)
        if found is None:
            return
        group, member = found
        member.update(draining=True)
        self._apply(
            group,
            GroupEvent.DRAIN,
            f"rank {rank_id.rank} is draining: {reason or 'no reason given'}",
        )
        self._changed()

    def fault(self, rank_id: RankId, handle: RankHandle, reason: str) -> None:
        """Fence the group of a rank that failed.

        The group becomes ready again after the rank has reported itself healthy and all ranks have
        generated a canary's token.
        """
        found = self._find(rank_id, handle)
        if found is None:
            return
        group, member = found
        member.update(healthy=False, health_reason=reason)
        member.proven = member.canary_sent = False
        self._apply(group, GroupEvent.FAULT, f"rank {rank_id.rank}: {reason}")
        self._settle(group)
        self._changed()

    def proven(self, rank_id: RankId, handle: RankHandle) -> None:
        """Record that a rank has generated the canary's token."""
        found = self._find(rank_id, handle)
        if found is None:
            return
        group, member = found
        member.proven = True
        self._settle(group)
        self._changed()

    # -- operations ---------------------------------------------------------------------

    def cordon(self, group_id: str, reason: str) -> None:
        """Stop routing new requests to a group; running requests continue.

        Raises:
            GroupNotFound: No such group is joined.
        """
        group = self._group(group_id)
        group.cordoned = reason or "by an operator"
        self._apply(group, GroupEvent.DRAIN, f"cordoned: {group.cordoned}")
        self._settle(group)
        self._changed()

    def uncordon(self, group_id: str) -> None:
        """Route requests to a cordoned group again, once nothing else prevents it.

        Raises:
            GroupNotFound: No such group is joined.
        """
        group = self._group(group_id)
        group.cordoned = ""
        if not any(member.snapshot.draining for member in group.members.values()):
            self._apply(group, GroupEvent.UNCORDON, "uncordoned")
        self._settle(group)
        self._changed()

    def move_requests(self, group_id: str, reason: str) -> None:
        """Cordon a group and move its running requests to other groups.

        Raises:
            GroupNotFound: No such group is joined.
        """
        self.cordon(group_id, reason)
        for member in tuple(self._group(group_id).members.values()):
            member.handle.fence(
                f"group {group_id} moves its requests to other groups: {reason}", planned=True
            )

    def inflight_requests(self, group_id: str) -> int:
        """Return the number of this router's requests on the group; 0 if it is not joined."""
        group = self._groups.get(group_id)
        members = group.members.values() if group is not None else ()
        return sum(member.handle.inflight_requests for member in members)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after each change to a group's state or ranks.

        Returns:
            A function that unsubscribes the listener.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- views --------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether any group accepts requests."""
        return len(self.candidates) > 0

    @property
    def ready_groups(self) -> int:
        """Number of groups that accept requests."""
        return len(self.candidates)

    def has_group(self, group_id: str) -> bool:
        """Return whether ranks of the group are joined."""
        return group_id in self._groups

    def pool_of(self, group_id: str) -> str:
        """Return the pool of a joined group; empty if it has not joined or has no pool name."""
        group = self._groups.get(group_id)
        return "" if group is None else group.pool

    def handle(self, rank_id: RankId) -> RankHandle | None:
        """Return the connection to a rank; None if it is no longer a member."""
        member = self._member(rank_id)
        return None if member is None else member.handle

    def snapshot(self) -> FleetSnapshot:
        """Return a frozen snapshot of the fleet."""
        return FleetSnapshot(
            self.router_id,
            tuple(group_snapshot(self._groups[name]) for name in sorted(self._groups)),
            tuple(reversed(self._history)),
        )

    # -- rules --------------------------------------------------------------------------

    def _member(self, rank_id: RankId) -> Member | None:
        group = self._groups.get(rank_id.group_id)
        if group is None or group.epoch != rank_id.epoch:
            return None
        return group.members.get(rank_id.rank)

    def _find(self, rank_id: RankId, handle: RankHandle) -> tuple[Group, Member] | None:
        member = self._member(rank_id)
        if member is None or member.handle is not handle:
            return None
        return self._groups[rank_id.group_id], member

    def _group(self, group_id: str) -> Group:
        group = self._groups.get(group_id)
        if group is None:
            here = ", ".join(sorted(self._groups)) or "none"
            raise GroupNotFound(
                f"no group {group_id!r} has joined this router; joined groups: {here}"
            )
        return group

    def _is_older(self, hello: link_pb2.Hello, group: Group) -> bool:
        """Return whether a rank of another epoch is left over from before the current one."""
        if hello.epoch_started_unix_seconds and group.started:
            return hello.epoch_started_unix_seconds < group.started
        return (hello.group_id, hello.epoch) in self._replaced

    def _settle(self, group: Group) -> None:
        """Make the group ready if it is complete; otherwise record what is missing."""
        if group.state not in {MemberState.JOINING, MemberState.FENCED}:
            return  # no other state waits for ranks; most reports end here
        waits = waits_for(group)
        if not waits and self._canary is not None:
            waits = self._prove(group, self._canary)
        if not waits:
            self._apply(
                group,
                GroupEvent.COMPLETE,
                f"all {group.world_size} ranks are healthy"
                + (" and generate tokens" if self._canary is not None else ""),
            )
        elif group.state is MemberState.JOINING:
            group.reason = waits

    def _prove(self, group: Group, canary: Canary) -> str:
        """Send missing canaries; return what the group still waits for, empty if nothing."""
        missing = unproven(group)
        for member in missing:
            if not member.canary_sent:
                member.canary_sent = True
                canary.send(member.snapshot.rank_id, member.handle, self)
        ranks = ", ".join(str(member.snapshot.rank) for member in missing[:8])
        return f"waiting for the first token of rank {ranks}" if missing else ""

    def _apply(self, group: Group, event: GroupEvent, reason: str) -> None:
        after = TRANSITIONS.get((group.state, event))
        if after is None:
            return
        if group.state is MemberState.READY:
            self._withdraw(group)
        planned = group.state is MemberState.DRAINING
        group.state, group.reason, group.since = after, reason, self._clock.time()
        members = tuple(group.members.values())
        if after is MemberState.READY:
            self._offer(group)
        if after is MemberState.FENCED:
            metrics.GROUPS_FENCED.inc()
            for member in members:
                member.proven = member.canary_sent = False
                member.handle.fence(f"group {group.group_id} was fenced: {reason}", planned=planned)
        elif after is MemberState.GONE:
            self._history.append(group_snapshot(group))
            if self._groups.get(group.group_id) is group:
                del self._groups[group.group_id]
            for member in members:
                member.handle.fence(f"group {group.group_id} is gone: {reason}", planned=planned)
                member.handle.close(reason)

    def _offer(self, group: Group) -> None:
        """Let routing choose from the group's ranks."""
        ranks = [member.candidate for _, member in sorted(group.members.items())]
        self.candidates.add(group.group_id, group.epoch, ranks)
        for rank in ranks:
            if rank.adapter_slots:
                self.adapters.add(rank.rank_id, rank.adapter_slots, rank.load.adapters)

    def _withdraw(self, group: Group) -> None:
        self.candidates.remove(group.group_id)
        for member in group.members.values():
            self.adapters.forget(member.snapshot.rank_id)

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _same_process(one: link_pb2.Hello, other: link_pb2.Hello) -> bool:
    return bool(one.node and one.pid) and (one.node, one.pid) == (other.node, other.pid)

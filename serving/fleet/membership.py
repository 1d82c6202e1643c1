"""Who is a member: the roster of groups and ranks.

No I/O and no waiting is done here. A rank is a member while its link lives; a group counts as
one failure domain, because expert-parallel collectives hang when one rank is lost. A group gets
work when all ranks of one epoch have joined, report themselves healthy, and have each generated
one token for the canary: an engine that says it is well may still not work.
"""

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import replace
from uuid import uuid4

from serving.clock import Clock, SystemClock
from serving.errors import GroupNotFound, LinkRefused
from serving.fleet.group import (
    Group,
    Member,
    first_snapshot,
    group_snapshot,
    load_of,
    unproven,
    waits_for,
)
from serving.fleet.group_states import TRANSITIONS, GroupEvent
from serving.fleet.rank_handle import MemberKey, RankHandle
from serving.fleet.shortlist import ReadyGroups
from serving.link.v1 import link_pb2
from serving.routing.prefix_index import PrefixIndex
from serving.routing.snapshot import FleetSnapshot, GroupSnapshot, MemberState
from serving.settings import FleetSettings
from serving.telemetry import metrics

AskCanary = Callable[[MemberKey, RankHandle], None]


class JoinRefused(LinkRefused):
    """The rank may not join; ``code`` goes into the Refusal."""

    def __init__(self, code: link_pb2.Refusal.Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Roster:
    """The router's picture of its fleet. All calls come from one event loop."""

    def __init__(
        self,
        settings: FleetSettings | None = None,
        clock: Clock | None = None,
        router_id: str | None = None,
        prefixes: PrefixIndex | None = None,
    ) -> None:
        self._settings = settings or FleetSettings()
        self._clock = clock or SystemClock()
        self.router_id = router_id or uuid4().hex[:8]
        self.prefixes = prefixes if prefixes is not None else PrefixIndex()
        """What the ranks' KV caches hold; their links fill it, routing reads it."""
        self._groups: dict[str, Group] = {}
        self._ready_groups: ReadyGroups | None = None
        self._history: deque[GroupSnapshot] = deque(maxlen=self._settings.history_groups)
        # Epochs that another replaced, for gangs that do not say when they started: a left-over
        # rank may not push the living group out. Bounded; by then such a rank is long dead.
        self._replaced: deque[tuple[str, str]] = deque(maxlen=1024)
        self._listeners: list[Callable[[], None]] = []
        self.ask_canary: AskCanary | None = None
        """Sends a rank the canary; ``proven`` or ``fault`` is the answer. None: none is needed."""

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
            group = Group(
                hello.group_id,
                hello.epoch,
                hello.world_size,
                MemberState.JOINING,
                "",
                self._clock.time(),
                hello.epoch_started_unix_seconds,
                app=hello.app,
            )
            self._groups[hello.group_id] = group
        group.total_experts = max(group.total_experts, hello.experts.total)
        group.members[hello.rank] = Member(hello, handle, first_snapshot(hello, self._clock))
        self._ready_groups = None
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
        self._ready_groups = None
        # Its own requests fail even when the group's state has no transition for this.
        planned = group.state is MemberState.DRAINING
        handle.fence(f"{key} was lost: {reason}", planned=planned)
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
            load=load_of(load),
            recent_experts=member.experts.update(load.experts, self._clock.monotonic()),
            reported_at=self._clock.time(),
        )
        if not healthy:
            member.proven = member.asked = False
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

    def fault(self, key: MemberKey, handle: RankHandle, reason: str) -> None:
        """Note that a rank failed at something; its group is fenced at once.

        It may come back once the rank has reported itself healthy after this and its ranks have
        answered the canary.
        """
        found = self._find(key, handle)
        if found is None:
            return
        group, member = found
        member.snapshot = replace(member.snapshot, healthy=False, health_reason=reason)
        member.proven = member.asked = False
        self._apply(group, GroupEvent.FAULT, f"rank {key.rank}: {reason}")
        self._settle(group)
        self._changed()

    def proven(self, key: MemberKey, handle: RankHandle) -> None:
        """Note that a rank has generated the canary's token."""
        found = self._find(key, handle)
        if found is None:
            return
        group, member = found
        member.proven = True
        self._settle(group)
        self._changed()

    # -- what operators do --------------------------------------------------------------

    def cordon(self, group_id: str, reason: str) -> None:
        """Give the group no new work from here on; what it has goes on.

        Raises:
            GroupNotFound: it is not here.
        """
        group = self._group(group_id)
        group.cordoned = reason or "by an operator"
        self._apply(group, GroupEvent.DRAIN, f"cordoned: {group.cordoned}")
        self._settle(group)
        self._changed()

    def uncordon(self, group_id: str) -> None:
        """Give the group work again, if nothing else keeps it from it.

        Raises:
            GroupNotFound: it is not here.
        """
        group = self._group(group_id)
        group.cordoned = ""
        if not any(member.snapshot.draining for member in group.members.values()):
            self._apply(group, GroupEvent.UNCORDON, "uncordoned")
        self._settle(group)
        self._changed()

    def hand_over(self, group_id: str, reason: str) -> None:
        """Move the requests of a group to others: it gets no new work, they go on elsewhere.

        Raises:
            GroupNotFound: it is not here.
        """
        self.cordon(group_id, reason)
        for member in tuple(self._group(group_id).members.values()):
            member.handle.fence(f"group {group_id} hands over: {reason}", planned=True)

    def inflight_requests(self, group_id: str) -> int:
        """Return how many of this router's requests are on the group; 0 if it is not here."""
        group = self._groups.get(group_id)
        members = group.members.values() if group is not None else ()
        return sum(member.handle.inflight_requests for member in members)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after each change of a group's state or ranks; returns the way off."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- what is ------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether any group can take work."""
        return self.ready_groups > 0

    @property
    def ready_groups(self) -> int:
        """How many groups can take work."""
        return sum(group.state is MemberState.READY for group in self._groups.values())

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
            tuple(group_snapshot(self._groups[name]) for name in sorted(self._groups)),
            tuple(reversed(self._history)),
        )

    def shortlist(self, wanted: Collection[str], turn: int) -> FleetSnapshot | None:
        """Return a part of a large fleet, so that a choice costs the same however large it is.

        Args:
            wanted: groups that must be in it, if they are ready.
            turn: counts the calls; the other groups take turns by it.

        Returns:
            Some of the ready groups; none if the whole fleet is small enough.
        """
        if self._ready_groups is None:
            self._ready_groups = ReadyGroups(self._groups)
        groups = self._ready_groups.some(wanted, turn)
        if groups is None:
            return None
        return FleetSnapshot(self.router_id, tuple(group_snapshot(group) for group in groups))

    # -- rules --------------------------------------------------------------------------

    def _find(self, key: MemberKey, handle: RankHandle) -> tuple[Group, Member] | None:
        group = self._groups.get(key.group_id)
        if group is None or group.epoch != key.epoch:
            return None
        member = group.members.get(key.rank)
        if member is None or member.handle is not handle:
            return None
        return group, member

    def _group(self, group_id: str) -> Group:
        group = self._groups.get(group_id)
        if group is None:
            here = ", ".join(sorted(self._groups)) or "none"
            raise GroupNotFound(f"no group {group_id!r} is joined to this router; joined: {here}")
        return group

    def _is_older(self, hello: link_pb2.Hello, group: Group) -> bool:
        """Whether a newcomer of another epoch is a left-over rather than the successor."""
        if hello.epoch_started_unix_seconds and group.started:
            return hello.epoch_started_unix_seconds < group.started
        return (hello.group_id, hello.epoch) in self._replaced

    def _settle(self, group: Group) -> None:
        """See whether the group is complete, and say what it waits for if not."""
        waits = waits_for(group)
        asking = group.state in {MemberState.JOINING, MemberState.FENCED}
        if not waits and asking and self.ask_canary is not None:
            waits = self._prove(group, self.ask_canary)
        if not waits:
            self._apply(
                group,
                GroupEvent.COMPLETE,
                f"all {group.world_size} ranks are healthy"
                + (" and generate" if self.ask_canary is not None else ""),
            )
        elif group.state is MemberState.JOINING:
            group.reason = waits

    def _prove(self, group: Group, ask: AskCanary) -> str:
        """Send the canary to the ranks that have not answered it; returns what is missing."""
        missing = unproven(group)
        for member in missing:
            if not member.asked:
                member.asked = True
                rank = member.snapshot.rank
                ask(MemberKey(group.group_id, group.epoch, rank), member.handle)
        ranks = ", ".join(str(member.snapshot.rank) for member in missing[:8])
        return f"waits for the first token of rank {ranks}" if missing else ""

    def _apply(self, group: Group, event: GroupEvent, reason: str) -> None:
        after = TRANSITIONS.get((group.state, event))
        if after is None:
            return
        self._ready_groups = None
        planned = group.state is MemberState.DRAINING
        group.state, group.reason, group.since = after, reason, self._clock.time()
        members = tuple(group.members.values())
        if after is MemberState.FENCED:
            metrics.GROUPS_FENCED.inc()
            for member in members:
                member.proven = member.asked = False
                member.handle.fence(f"group {group.group_id} was fenced: {reason}", planned=planned)
        elif after is MemberState.GONE:
            self._history.append(group_snapshot(group))
            if self._groups.get(group.group_id) is group:
                del self._groups[group.group_id]
            for member in members:
                member.handle.fence(f"group {group.group_id} is gone: {reason}", planned=planned)
                member.handle.close(reason)

    def _changed(self) -> None:
        for listener in tuple(self._listeners):
            listener()


def _same_process(one: link_pb2.Hello, other: link_pb2.Hello) -> bool:
    return bool(one.node and one.pid) and (one.node, one.pid) == (other.node, other.pid)

"""The fleet of a router: one membership for each model that it serves.

Groups of different models share nothing but the router. Each model therefore has its own
membership, prefix index and ready groups, and a request sees only the groups of its model.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serving.errors import GroupNotFound
from serving.fleet.adapter_operations import AdapterStatus
from serving.fleet.membership import FleetMembership, JoinRefused
from serving.fleet.rank_handle import RankHandle
from serving.link.v1 import link_pb2
from serving.routing.snapshot import FleetSnapshot, RankId


class FleetModel:
    """One model of the fleet."""

    def __init__(
        self,
        name: str,
        membership: FleetMembership,
        fingerprint: str | Callable[[], str],
        pools: tuple[str, ...] = ("default",),
    ) -> None:
        """Serve one model.

        Args:
            name: The name that ranks send in Hello.
            membership: The model's groups.
            fingerprint: Fingerprint of the model's files on this router, or a function that reads
                it; called when the first rank joins, in a thread.
            pools: Names of the pools, at least one; ranks that do not name a pool belong to the
                first.
        """
        self.name = name
        self.membership = membership
        self.pools = pools
        self._fingerprint = fingerprint

    async def fingerprint(self) -> str:
        """Return the fingerprint that the ranks' model files must have.

        Raises:
            OSError, ValueError: The files cannot be read.
        """
        if not isinstance(self._fingerprint, str):
            self._fingerprint = await asyncio.to_thread(self._fingerprint)
        return self._fingerprint


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """State of one model in a router, for status pages and metrics."""

    name: str
    aliases: tuple[str, ...] = ()
    pools: tuple[str, ...] = ("default",)
    """Names of the configured pools, whether groups have joined or not."""
    loaded: bool = True
    """Whether tokenizer, chat template and parsers are in memory."""
    queued_requests: int = 0
    queued_tokens: int = 0
    """Number of prompt tokens plus expected output tokens of the queued requests."""
    ready: bool = False
    """Whether any group of the model accepts requests; otherwise requests are parked."""
    adapters: tuple[AdapterStatus, ...] = ()


class FleetModels:
    """All models of one router. Not thread-safe: all calls come from one event loop."""

    def __init__(self, models: Sequence[FleetModel]) -> None:
        """Serve ``models``, at least one; their memberships must have the same router id."""
        self.by_name = {model.name: model for model in models}
        self._memberships = tuple(model.membership for model in models)
        self.router_id = self._memberships[0].router_id

    def join(self, hello: link_pb2.Hello, handle: RankHandle) -> RankId:
        """Add a rank whose Hello has passed ``join_server.check_hello``.

        Raises:
            JoinRefused: The rank does not match the ranks that have joined.
        """
        model = self.by_name[hello.model]
        for other in self.by_name.values():
            if other is not model and other.membership.has_group(hello.group_id):
                raise JoinRefused(
                    link_pb2.Refusal.BAD_HELLO,
                    f"group {hello.group_id} of model {hello.model!r} has the id of a group of "
                    f"model {other.name!r}: group ids must be unique in the fleet",
                )
        return model.membership.join(hello, handle)

    @property
    def ready(self) -> bool:
        """Whether any group of any model accepts requests."""
        return any(membership.ready for membership in self._memberships)

    def snapshot(self) -> FleetSnapshot:
        """Return a frozen snapshot of all groups, ordered by id."""
        snapshots = [membership.snapshot() for membership in self._memberships]
        if len(snapshots) == 1:
            return snapshots[0]
        groups = [group for snapshot in snapshots for group in snapshot.groups]
        history = [group for snapshot in snapshots for group in snapshot.history]
        return FleetSnapshot(
            self.router_id,
            tuple(sorted(groups, key=lambda group: group.group_id)),
            tuple(sorted(history, key=lambda group: -group.since)),
        )

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` after each change to a group's state or ranks.

        Returns:
            A function that unsubscribes the listener.
        """
        undo = [membership.subscribe(listener) for membership in self._memberships]

        def unsubscribe() -> None:
            for each in undo:
                each()

        return unsubscribe

    def owner(self, group_id: str) -> FleetMembership:
        """Return the membership of the group's model.

        Raises:
            GroupNotFound: No such group is joined.
        """
        for membership in self._memberships:
            if membership.has_group(group_id):
                return membership
        here = ", ".join(group.group_id for group in self.snapshot().groups) or "none"
        raise GroupNotFound(f"no group {group_id!r} has joined this router; joined groups: {here}")

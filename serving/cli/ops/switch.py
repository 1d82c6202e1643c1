"""``moe-serving switch``: moves the traffic of one app's groups to another app's groups.

The last step of a blue/green upgrade. Two Ray Serve applications of the same model (on KubeRay: two
RayClusters) have joined the same routers. Once the new groups are ready at every router, all
routers stop sending requests to the old groups; running requests finish there or are resumed in the
new groups. The old application keeps running until it is deleted; until then, a switch in the other
direction reverts this one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from serving import errors
from serving.api.v1 import fleet_pb2
from serving.cli.ops.operate import DRAIN_TIMEOUT, DrainTimeoutOption, connect_routers
from serving.client.flags import (
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    GrpcAddressesOption,
    ServerNameOption,
)
from serving.client.grpc import GrpcClient, PendingDrain, inflight_of

POLL_SECONDS = 0.5
_SERVING = {fleet_pb2.MEMBER_STATE_READY, fleet_pb2.MEMBER_STATE_DRAINING}

Say = Callable[[str], object]


def switch_command(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="APP",
            help="App, or RayCluster, to move traffic to; as in moe-serving status.",
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="APP",
            help="App, or RayCluster, to move traffic away from.",
            show_default="all others",
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(
            "--groups",
            min=1,
            help="Groups of --to that must be ready at every router.",
            show_default="as many as they replace",
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", min=0, metavar="SECONDS", help="Time for the groups of --to to become ready."
        ),
    ] = 600.0,
    timeout: DrainTimeoutOption = DRAIN_TIMEOUT,
    grpc_addresses: GrpcAddressesOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> int:
    """Move traffic to the groups of another app, at all routers.

    Waits until the new groups are ready at every router, cordons the old ones at all routers, then
    drains them. Requests that are not finished in time are resumed in the new groups. If the new
    groups fail in the meantime, the traffic moves back to the old ones.

    Exit code 0 if all requests finished in time, 1 if not.
    """
    if source == to:
        raise errors.SettingsError("--from and --to name the same app")
    routers = connect_routers(grpc_addresses, api_key, ca_file, cert_file, server_name)
    change = Switch(routers, to, source, print)
    change.wait_ready(groups, wait)
    return 0 if change.hand_over(timeout) else 1


def is_of_app(app: str, name: str) -> bool:
    """Return whether a group's ``app`` is ``name``, or belongs to the RayCluster ``name``."""
    return app == name or app.startswith(f"{name}/")


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch at a set of routers."""

    routers: Sequence[GrpcClient]
    to: str
    source: str | None
    say: Say

    def wait_ready(self, wanted: int | None, wait: float) -> None:
        """Wait until every router has enough ready groups of the new app.

        New groups that an earlier switch has cordoned are uncordoned.

        Raises:
            NotReady: Groups are missing after ``wait`` seconds; nothing has been switched.
        """
        deadline = time.monotonic() + wait
        shown = ""
        while missing := self._missing(wanted):
            if missing != shown:
                self.say(f"waiting: {missing}")
                shown = missing
            if time.monotonic() >= deadline:
                raise errors.NotReady(f"nothing was switched: {missing} after {wait:g} s")
            time.sleep(POLL_SECONDS)

    def hand_over(self, timeout: float) -> bool:
        """Cordon the old groups at all routers, then drain them.

        Returns:
            Whether all requests finished in time.

        Raises:
            NotReady: The new groups failed; the traffic is back on the old ones.
            ServingError: A call failed.
        """
        cordoned: dict[tuple[str, str], GrpcClient] = {}
        finished = True
        # Repeat until no old group is left: a restarting gang may join during the drain.
        while old := [
            (router, group.group_id)
            for router in self.routers
            for group in router.groups()
            if self._old(group) and (router.address, group.group_id) not in cordoned
        ]:
            cordoned |= {(router.address, group): router for router, group in old}
            finished &= self._drain(old, timeout, cordoned)
        if not cordoned:
            self.say(f"no app other than {self.to} is serving")
        self.say(
            f"{self.to} has all the traffic"
            if finished
            else f"not drained after {timeout:.0f} s: the remaining requests are resumed in "
            f"{self.to}"
        )
        return finished

    def _drain(
        self,
        old: Sequence[tuple[GrpcClient, str]],
        timeout: float,
        cordoned: Mapping[tuple[str, str], GrpcClient],
    ) -> bool:
        # Cordon all groups first, so that none gets new requests while another drains.
        here = [(router, group) for router, group in old if self._cordon(router, group)]
        if here:
            where = _count(len({router.address for router, _ in here}), "router")
            self.say(f"cordoned at {where}: {', '.join(sorted({group for _, group in here}))}")
        drains = [router.drain(group, timeout) for router, group in here]
        try:
            self._follow(drains, cordoned)
            # Read every result: all() alone would stop at the first that has not finished.
            finished = [_finished(drain) for drain in drains]
            return all(finished)
        finally:
            for drain in drains:
                drain.cancel()

    def _cordon(self, router: GrpcClient, group: str) -> bool:
        """Cordon a group; return False if it no longer exists."""
        try:
            router.cordon(group, f"replaced by {self.to}")
        except errors.GroupNotFound:
            return False
        return True

    def _missing(self, wanted: int | None) -> str:
        """Return a description of what the switch is waiting for; empty if it can begin."""
        for router in self.routers:
            seen = router.groups()
            new = [group for group in seen if is_of_app(group.app, self.to)]
            for group in new:
                if group.state == fleet_pb2.MEMBER_STATE_DRAINING:
                    router.uncordon(group.group_id)
            replaced = sum(self._old(group) and group.state in _SERVING for group in seen)
            needed = wanted or max(replaced, 1)
            ready = _ready(new)
            if ready < needed:
                return (
                    f"{router.address} has {ready} of {_count(needed, 'ready group')} of {self.to}"
                )
        return ""

    def _follow(
        self, drains: Sequence[PendingDrain], cordoned: Mapping[tuple[str, str], GrpcClient]
    ) -> None:
        """Wait until all drains have ended; report how many requests are left.

        Raises:
            NotReady: A router no longer has a ready group of the new app.
        """
        shown = None
        while not all(drain.done() for drain in drains):
            seen = [(router, router.groups()) for router in self.routers]
            for router, groups in seen:
                if not _ready([group for group in groups if is_of_app(group.app, self.to)]):
                    self._move_back(cordoned)
                    raise errors.NotReady(
                        f"{self.to} no longer has a ready group at {router.address}: the traffic "
                        "was moved back"
                    )
            left = sum(
                inflight_of(group) for _, groups in seen for group in groups if self._old(group)
            )
            if left != shown:
                self.say(f"{_count(left, 'request')} left on the old groups")
                shown = left
            time.sleep(POLL_SECONDS)

    def _move_back(self, cordoned: Mapping[tuple[str, str], GrpcClient]) -> None:
        for (_, group), router in cordoned.items():
            try:
                router.uncordon(group)
            except errors.ServingError as error:
                self.say(f"{group} at {router.address}: {error}")

    def _old(self, group: fleet_pb2.Group) -> bool:
        if is_of_app(group.app, self.to):
            return False
        return self.source is None or is_of_app(group.app, self.source)


def _ready(groups: Sequence[fleet_pb2.Group]) -> int:
    return sum(group.state == fleet_pb2.MEMBER_STATE_READY for group in groups)


def _finished(drain: PendingDrain) -> bool:
    try:
        return drain.finished()
    except errors.GroupNotFound:
        # The group has stopped on its own, and its requests were resumed in other groups.
        return True


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

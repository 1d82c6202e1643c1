"""``moe-serving switch``: hand the traffic of one app's groups over to another's.

The last step of a blue/green upgrade. Two Ray Serve applications of the same model (on KubeRay:
two RayClusters) have joined the same routers. The new one's groups must be ready at every router;
then every router is told to give the old ones no new work, and what they have is finished or goes
on in the new ones. Nothing is stopped here: the old application is deleted afterwards, and until
then a switch in the other direction undoes this one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import grpc
import typer

from serving import errors
from serving.api.v1 import fleet_pb2
from serving.cli.ops.operate import Router, RouterOption, inflight_of, reached
from serving.client.credentials import ApiKeyOption, CaFileOption, CertFileOption, ServerNameOption
from serving.client.grpc import error_of

_POLL_SECONDS = 0.5
_DRAIN_SLACK = 10.0
"""Seconds that a drain's answer may take beyond its time-out."""
_SERVING = {fleet_pb2.MEMBER_STATE_READY, fleet_pb2.MEMBER_STATE_DRAINING}

Say = Callable[[str], object]


def switch_command(
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="APP", help="Takes the traffic: an app or a RayCluster, as in status."
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="APP", help="Gives it away. [default: all others]"),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(
            "--groups",
            min=1,
            help="Ready groups of --to at every router. [default: as many as they replace]",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, metavar="SECONDS", help="For them to be ready.")
    ] = 600.0,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=0.1, metavar="SECONDS", help="For old requests to finish."),
    ] = 60.0,
    routers: RouterOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> int:
    """Hand the traffic over to the groups of another app, at all routers.

    Waits until the new groups are ready at every router, cordons the old ones everywhere, and
    drains them. What is left when the time is over goes on in the new ones. If they fail
    meanwhile, the old ones get the traffic back. Ends with 0 if all requests finished in time,
    1 if not.
    """
    if source == to:
        raise errors.SettingsError("--from and --to name the same app")
    change = Switch(reached(routers, api_key, ca_file, cert_file, server_name), to, source, print)
    change.wait_ready(groups, wait)
    return 0 if change.hand_over(timeout) else 1


def belongs(app: str, name: str) -> bool:
    """Whether ``app`` of a group is what ``name`` names: the app, or the RayCluster before it."""
    return app == name or app.startswith(f"{name}/")


@dataclass(frozen=True, slots=True)
class Switch:
    """One switch at some routers."""

    routers: Sequence[Router]
    to: str
    source: str | None
    say: Say

    def wait_ready(self, wanted: int | None, wait: float) -> None:
        """Return when every router has enough ready groups of the new app.

        New groups that an earlier switch has cordoned get work again.

        Raises:
            NotReady: they are not there after ``wait`` seconds; nothing is changed then.
        """
        deadline = time.monotonic() + wait
        shown = ""
        while missing := self._missing(wanted):
            if missing != shown:
                self.say(f"waits: {missing}")
                shown = missing
            if time.monotonic() >= deadline:
                raise errors.NotReady(f"nothing was switched: {missing}, after {wait:g} s")
            time.sleep(_POLL_SECONDS)

    def hand_over(self, timeout: float) -> bool:
        """Cordon the old groups everywhere, then drain them; return whether all ended in time.

        Raises:
            NotReady: the new groups failed; the old ones have the traffic again.
            ServingError: with a router's words.
        """
        told: dict[tuple[str, str], Router] = {}
        finished = True
        # Again, until there is none: a gang that was just being restarted joins meanwhile.
        while old := [
            (router, group.group_id)
            for router in self.routers
            for group in router.groups()
            if self._old(group) and (router.target, group.group_id) not in told
        ]:
            told |= {(router.target, group): router for router, group in old}
            finished &= self._drain(old, timeout, told)
        if not told:
            self.say(f"no other app than {self.to} serves")
        self.say(
            f"{self.to} has the traffic"
            if finished
            else f"{timeout:.0f} s were not enough: the rest goes on in {self.to}"
        )
        return finished

    def _drain(
        self,
        old: Sequence[tuple[Router, str]],
        timeout: float,
        told: Mapping[tuple[str, str], Router],
    ) -> bool:
        # All at once first: while one is drained, another must not get new work.
        here = [(router, group) for router, group in old if self._cordon(router, group)]
        if here:
            where = _count(len({router.target for router, _ in here}), "router")
            self.say(f"cordoned at {where}: {', '.join(sorted({group for _, group in here}))}")
        drains = [
            router.stub.Drain.future(
                fleet_pb2.DrainRequest(group_id=group, timeout_seconds=timeout),
                timeout=timeout + _DRAIN_SLACK,
                metadata=router.access.metadata(),
            )
            for router, group in here
        ]
        try:
            self._follow(drains, told)
            ends = [_finished(drain, where) for drain, (where, _) in zip(drains, here, strict=True)]
            return all(ends)
        finally:
            for drain in drains:
                drain.cancel()

    def _cordon(self, router: Router, group: str) -> bool:
        """Cordon a group; return whether it was still there."""
        request = fleet_pb2.CordonRequest(group_id=group, reason=f"{self.to} takes over")
        try:
            router.call("Cordon", request)
        except errors.GroupNotFound:
            return False
        return True

    def _missing(self, wanted: int | None) -> str:
        """Say what keeps the switch from beginning; empty: nothing."""
        for router in self.routers:
            seen = router.groups()
            new = [group for group in seen if belongs(group.app, self.to)]
            for group in new:
                if group.state == fleet_pb2.MEMBER_STATE_DRAINING:
                    router.call("Uncordon", fleet_pb2.UncordonRequest(group_id=group.group_id))
            replaced = sum(self._old(group) and group.state in _SERVING for group in seen)
            needed = wanted or max(replaced, 1)
            ready = _ready(new)
            if ready < needed:
                return (
                    f"{router.target} has {ready} of {_count(needed, 'ready group')} of {self.to}"
                )
        return ""

    def _follow(self, drains: Sequence[Any], told: Mapping[tuple[str, str], Router]) -> None:
        """Wait until all drains have ended, telling how many requests are left.

        Raises:
            NotReady: some router has no ready group of the new app any more.
        """
        shown = None
        while not all(drain.done() for drain in drains):
            seen = [(router, router.groups()) for router in self.routers]
            for router, groups in seen:
                if not _ready([group for group in groups if belongs(group.app, self.to)]):
                    self._give_back(told)
                    raise errors.NotReady(
                        f"{self.to} has no ready group at {router.target} any more: the traffic "
                        "was given back"
                    )
            left = sum(
                inflight_of(group) for _, groups in seen for group in groups if self._old(group)
            )
            if left != shown:
                self.say(f"{_count(left, 'request')} left on the old groups")
                shown = left
            time.sleep(_POLL_SECONDS)

    def _give_back(self, told: Mapping[tuple[str, str], Router]) -> None:
        for (_, group), router in told.items():
            try:
                router.call("Uncordon", fleet_pb2.UncordonRequest(group_id=group))
            except errors.ServingError as error:
                self.say(f"{group} at {router.target}: {error}")

    def _old(self, group: fleet_pb2.Group) -> bool:
        if belongs(group.app, self.to):
            return False
        return self.source is None or belongs(group.app, self.source)


def _ready(groups: Sequence[fleet_pb2.Group]) -> int:
    return sum(group.state == fleet_pb2.MEMBER_STATE_READY for group in groups)


def _finished(drain: Any, router: Router) -> bool:
    try:
        return bool(drain.result().finished)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            # It has gone by itself: stopped, and its requests went on elsewhere.
            return True
        raise error_of(error, router.target, errors.GroupNotFound) from error


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

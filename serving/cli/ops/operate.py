"""``moe-serving drain``, ``cordon`` and ``uncordon``: what operators do with a group.

Each router decides for itself where it sends work, so each of a set must be told: give all of
them with ``--router``, or a name that stands for all of them (``dns:///name:port``).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import grpc
import typer

from serving import errors
from serving.api.v1 import fleet_pb2, fleet_pb2_grpc
from serving.cli.local.state import NotRunning, StateFile, state_folder
from serving.client.credentials import (
    Access,
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    ServerNameOption,
    access_from,
)
from serving.client.grpc import error_of, open_channel, require_answer
from serving.net import Target, expanded

_CALL_TIMEOUT = 10.0
"""Seconds for calls that wait for nothing."""
_DRAIN_SLACK = 10.0
"""Seconds that a drain's answer may take beyond its time-out."""
_POLL_SECONDS = 0.5

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="As status shows it: g0.")]
RouterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--router",
        metavar="HOST:PORT",
        help="A router's gRPC address; repeat it for each router, or dns:///NAME:PORT for all "
        "addresses of a name. [default: the local run's]",
        show_default=False,
    ),
]


def cordon_command(
    group: GroupArgument,
    reason: Annotated[
        str, typer.Option("--reason", help="Shown as the group's reason.", show_default=False)
    ] = "",
    routers: RouterOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Give a group no new work; what it has goes on. Undone by uncordon."""
    for router in reached(routers, api_key, ca_file, cert_file, server_name):
        router.call("Cordon", fleet_pb2.CordonRequest(group_id=group, reason=reason))
        print(f"{group}: cordoned at {router.target}")


def uncordon_command(
    group: GroupArgument,
    routers: RouterOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Let a cordoned or drained group have work again."""
    for router in reached(routers, api_key, ca_file, cert_file, server_name):
        router.call("Uncordon", fleet_pb2.UncordonRequest(group_id=group))
        print(f"{group}: takes work again at {router.target}")


def drain_command(
    group: GroupArgument,
    timeout: Annotated[
        float,
        typer.Option("--timeout", min=0.1, metavar="SECONDS", help="For its requests to finish."),
    ] = 60.0,
    routers: RouterOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> int:
    """Cordon a group and wait until its requests are finished.

    What is left when the time is over goes on in other groups. The group stays cordoned:
    stop its ranks, or use uncordon. Ends with 0 if all finished in time, 1 if not.
    """
    reachable = reached(routers, api_key, ca_file, cert_file, server_name)
    # All at once first: while one is drained, another must not send it new work.
    for router in reachable:
        router.call("Cordon", fleet_pb2.CordonRequest(group_id=group, reason="being drained"))
        print(f"{group}: cordoned at {router.target}", flush=True)
    deadline = time.monotonic() + timeout
    finished = True
    for router in reachable:
        left = max(deadline - time.monotonic(), 0.1)
        finished &= drain(router, group, left, print)
    return 0 if finished else 1


@dataclass(slots=True)
class Router:
    """One router's FleetService."""

    target: str
    access: Access
    stub: Any

    def call(self, method: str, request: Any) -> Any:
        """Call an RPC that answers at once.

        Raises:
            ServingError: with the router's words.
        """
        try:
            return getattr(self.stub, method)(
                request, timeout=_CALL_TIMEOUT, metadata=self.access.metadata()
            )
        except grpc.RpcError as error:
            raise error_of(error, self.target, errors.GroupNotFound) from error

    def groups(self) -> list[fleet_pb2.Group]:
        """Return the living groups as this router sees them."""
        fleet = self.call("GetFleet", fleet_pb2.GetFleetRequest())
        return [item for item in fleet.groups if item.state != fleet_pb2.MEMBER_STATE_GONE]

    def inflight(self, group: str) -> int:
        """Return how many requests of this router the group has."""
        return sum(inflight_of(item) for item in self.groups() if item.group_id == group)


def reached(
    routers: Sequence[str] | None,
    api_key: str | None,
    ca_file: str | None,
    cert_file: str | None,
    server_name: str | None = None,
) -> list[Router]:
    """Return the routers, all of which answer.

    Raises:
        SettingsError: one is neither host:port nor dns:///name:port.
        NotRunning: none is given, and nothing runs here.
        NotReady: one does not answer; then none has been told anything.
    """
    folder = state_folder()
    access = access_from(api_key, ca_file, cert_file, None if routers else folder, server_name)
    if not routers:
        state = StateFile(folder).read()
        if state is None:
            raise NotRunning("nothing is running here: name a router with --router HOST:PORT")
        routers = [state.grpc_address]
    found = []
    for target in _targets(routers):
        channel = open_channel(target.address, access, target.server_name)
        require_answer(channel, target.address)
        found.append(Router(target.address, access, fleet_pb2_grpc.FleetServiceStub(channel)))
    return found


def inflight_of(group: fleet_pb2.Group) -> int:
    """Return how many requests the group has of the router that shows it."""
    return sum(rank.inflight_requests for rank in group.ranks)


def _targets(routers: Sequence[str]) -> list[Target]:
    try:
        return asyncio.run(expanded(routers))
    except ValueError as error:
        raise errors.SettingsError(f"--router: {error}") from error
    except OSError as error:
        raise errors.NotReady(f"cannot resolve {', '.join(routers)}: {error}") from error


def drain(router: Router, group: str, timeout: float, say: Callable[[str], object]) -> bool:
    """Drain the group at one router, telling how many requests are left; return if all ended.

    Raises:
        ServingError: with the router's words.
    """
    pending = router.stub.Drain.future(
        fleet_pb2.DrainRequest(group_id=group, timeout_seconds=timeout),
        timeout=timeout + _DRAIN_SLACK,
        metadata=router.access.metadata(),
    )
    shown = None
    try:
        while not pending.done():
            left = router.inflight(group)
            if left and left != shown:
                say(f"{group}: {left} requests left at {router.target}")
                shown = left
            time.sleep(_POLL_SECONDS)
        finished: bool = pending.result().finished
    except grpc.RpcError as error:
        raise error_of(error, router.target, errors.GroupNotFound) from error
    finally:
        pending.cancel()
    say(
        f"{group}: drained at {router.target}"
        if finished
        else f"{group}: {timeout:.0f} s were not enough at {router.target}, "
        "the rest goes on in other groups"
    )
    return finished

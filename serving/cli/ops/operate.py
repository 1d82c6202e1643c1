"""``moe-serving cordon``, ``uncordon`` and ``drain``: operator commands for a group.

Routers route independently of each other, so every router is called.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from serving import errors
from serving.cli.local.state import NotRunning, StateFile, state_folder
from serving.client.credentials import access_from
from serving.client.flags import (
    ApiKeyOption,
    CaFileOption,
    CertFileOption,
    GrpcAddressesOption,
    ServerNameOption,
)
from serving.client.grpc import GrpcClient
from serving.net import Target, expanded

POLL_SECONDS = 0.5

GroupArgument = Annotated[
    str, typer.Argument(metavar="GROUP", help="Id of the group, as in moe-serving status: g0.")
]
DrainTimeoutOption = Annotated[
    float,
    typer.Option(
        "--drain-timeout",
        min=0.1,
        metavar="SECONDS",
        help="Time for running requests to finish.",
    ),
]
DRAIN_TIMEOUT = 60.0
"""Default drain timeout of all commands and of the chart (engine.drainTimeout), seconds."""


def cordon_command(
    group: GroupArgument,
    reason: Annotated[
        str, typer.Option("--reason", help="Reason to show in status.", show_default="none")
    ] = "",
    grpc_addresses: GrpcAddressesOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Stop routing new requests to a group; running requests continue.

    Undo it with moe-serving uncordon.
    """
    for router in connect_routers(grpc_addresses, api_key, ca_file, cert_file, server_name):
        router.cordon(group, reason)
        print(f"{group}: cordoned at {router.address}")


def uncordon_command(
    group: GroupArgument,
    grpc_addresses: GrpcAddressesOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> None:
    """Route new requests to a cordoned or drained group again."""
    for router in connect_routers(grpc_addresses, api_key, ca_file, cert_file, server_name):
        router.uncordon(group)
        print(f"{group}: uncordoned at {router.address}")


def drain_command(
    group: GroupArgument,
    timeout: DrainTimeoutOption = DRAIN_TIMEOUT,
    grpc_addresses: GrpcAddressesOption = None,
    api_key: ApiKeyOption = None,
    ca_file: CaFileOption = None,
    cert_file: CertFileOption = None,
    server_name: ServerNameOption = None,
) -> int:
    """Drain a group: stop new requests, let running ones finish.

    Requests that are not finished in time are resumed in other groups. The group stays cordoned:
    stop its ranks, or undo the drain with moe-serving uncordon.

    Exit code 0 if all requests finished in time, 1 if not.
    """
    routers = connect_routers(grpc_addresses, api_key, ca_file, cert_file, server_name)
    # Cordon at all routers first, so that none sends new requests while another drains.
    for router in routers:
        router.cordon(group, "being drained")
        print(f"{group}: cordoned at {router.address}", flush=True)
    deadline = time.monotonic() + timeout
    finished = True
    for router in routers:
        left = max(deadline - time.monotonic(), 0.1)
        finished &= drain(router, group, left, print)
    return 0 if finished else 1


def connect_routers(
    addresses: Sequence[str] | None,
    api_key: str | None,
    ca_file: str | None,
    cert_file: str | None,
    server_name: str | None = None,
) -> list[GrpcClient]:
    """Return a client for each router, after all of them have answered.

    Args:
        addresses: host:port or dns:///name:port. If None or empty, the local run's router is used.
        api_key: Value of ``--api-key``.
        ca_file: Value of ``--ca-file``.
        cert_file: Value of ``--cert-file``.
        server_name: Value of ``--tls-server-name``.

    Raises:
        SettingsError: An address is neither host:port nor dns:///name:port.
        NotRunning: No address is given, and there is no local run.
        NotReady: A router does not answer; no router has been changed.
    """
    folder = state_folder()
    access = access_from(api_key, ca_file, cert_file, None if addresses else folder, server_name)
    if not addresses:
        state = StateFile(folder).read()
        if state is None:
            raise NotRunning(
                "nothing is running on this machine: specify a router with --grpc-address HOST:PORT"
            )
        addresses = [state.grpc_address]
    clients = []
    for target in _targets(addresses):
        client = GrpcClient(target.address, access, target.server_name)
        client.require_answer()
        clients.append(client)
    return clients


def _targets(addresses: Sequence[str]) -> list[Target]:
    try:
        return asyncio.run(expanded(addresses))
    except ValueError as error:
        raise errors.SettingsError(f"--grpc-address: {error}") from error
    except OSError as error:
        raise errors.NotReady(f"cannot resolve {', '.join(addresses)}: {error}") from error


def drain(router: GrpcClient, group: str, timeout: float, say: Callable[[str], object]) -> bool:
    """Drain the group at one router; return whether all its requests finished in time.

    Args:
        router: The router.
        group: Id of the group.
        timeout: Time for the group's requests to finish, seconds.
        say: Receives lines about the remaining requests.

    Raises:
        ServingError: A call failed.
    """
    pending = router.drain(group, timeout)
    shown = None
    try:
        while not pending.done():
            left = router.inflight(group)
            if left and left != shown:
                say(f"{group}: {left} requests left at {router.address}")
                shown = left
            time.sleep(POLL_SECONDS)
        finished = pending.finished()
    finally:
        pending.cancel()
    say(
        f"{group}: drained at {router.address}"
        if finished
        else f"{group}: not drained after {timeout:.0f} s at {router.address}; the remaining "
        "requests are resumed in other groups"
    )
    return finished

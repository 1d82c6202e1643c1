"""The ports of a router on this machine."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from serving.errors import ServingError, SettingsError
from serving.net import HeldPort
from serving.settings import Settings

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104


@dataclass(frozen=True, slots=True)
class Listener:
    """One address that the router will listen on."""

    what: str
    host: str
    port: int
    setting: str


class PortTaken(ServingError):
    """A port of the router is in use by another process."""


def listeners(settings: Settings) -> tuple[Listener, ...]:
    """Return the router's listening addresses."""
    router = settings.router
    return (
        Listener("REST", router.host, router.rest_port, "router.rest_port (--port)"),
        Listener("gRPC", router.host, router.grpc_port, "router.grpc_port (--grpc-port)"),
        Listener("join", router.join_host, router.join_port, "router.join_port (--join-port)"),
    )


def require_free(settings: Settings) -> None:
    """Check that the router can listen on all its addresses.

    Raises:
        PortTaken: A port is in use; the message names the port and its setting.
        SettingsError: An address does not belong to this machine, or two ports are equal.
    """
    seen: dict[int, str] = {}
    for item in listeners(settings):
        if item.port and item.port in seen:
            raise SettingsError(
                f"{seen[item.port]} and {item.setting} must differ; both are {item.port}"
            )
        seen[item.port] = item.setting
        _probe(item)


@contextlib.contextmanager
def with_chosen_ports(settings: Settings) -> Iterator[Settings]:
    """Replace every port 0 with a free port, also in the settings of the ranks.

    The ports are held until the end of the block, so that the kernel assigns them to no other
    process before the router listens or while it restarts.

    ``link.routers`` is replaced only if it has its default or the join port was 0; a configured
    list is kept.
    """
    router = settings.router
    hosts = {"rest_port": "host", "grpc_port": "host", "join_port": "join_host"}
    with contextlib.ExitStack() as stack:
        chosen = {
            name: stack.enter_context(HeldPort(getattr(router, host))).port
            for name, host in hosts.items()
            if getattr(router, name) == 0
        }
        router = router.model_copy(update=chosen)
        link = settings.link
        default = type(link)().routers
        if link.routers == default or "join_port" in chosen:
            dialled = _WILDCARDS.get(router.join_host, router.join_host)
            link = link.model_copy(update={"routers": (f"{dialled}:{router.join_port}",)})
        yield settings.model_copy(update={"router": router, "link": link})


def url_host(host: str) -> str:
    """Return a listening address in the form that a client on this machine uses in a URL."""
    host = _WILDCARDS.get(host, host)
    return f"[{host}]" if ":" in host else host


def _probe(item: Listener) -> None:
    family = socket.AF_INET6 if ":" in item.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that lingering connections of an earlier server do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((item.host, item.port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"the {item.what} port {item.port} on {item.host} is in use by another "
                    f"process; choose another port with {item.setting}"
                ) from error
            raise SettingsError(
                f"cannot listen on {item.host}:{item.port} for {item.what}: {error.strerror}"
            ) from error

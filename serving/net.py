"""Binds and holds ports, and resolves names that stand for several routers.

A target is ``host:port`` (one address) or ``dns:///name:port`` (all addresses behind the name, for
example of a headless Service). Each router decides independently where to send requests, and a
command sent to a load-balanced address reaches only one router.
"""

import asyncio
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from serving.errors import SettingsError

DNS_SCHEME = "dns:///"


@dataclass(frozen=True, slots=True)
class Target:
    """One address to connect to."""

    address: str
    """Address in the form host:port."""
    server_name: str | None = None
    """Name that was resolved to the address; the certificate must contain it. None if the target
    was an address."""


class HeldPort:
    """A free TCP port for a server that another process, or a later step, will start.

    The port is bound but not listening. Until it is released, the kernel does not assign it to
    processes that request any free port or open a connection. A server that binds this port number
    with SO_REUSEADDR, as servers do, can listen on it. If the port were not held, the kernel could
    assign it to another process before the server starts.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        """Choose and hold a port on ``host``, an IPv4 or IPv6 address of this machine."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, 0))
        except BaseException:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]

    def release(self) -> None:
        """Release the port; a server that already listens on it keeps it."""
        self._socket.close()

    def __enter__(self) -> Self:
        """Return the port, which is released at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the port."""
        self.release()


def bind(
    what: str, host: str, port: int, setting: str, *, cut_after: float | None = None
) -> socket.socket:
    """Bind a TCP socket; the caller listens on it.

    Args:
        what: Name of the protocol, for the error message.
        host: IPv4 or IPv6 address.
        port: Port number. 0 means any free port.
        setting: Name of the port's setting, for the error message.
        cut_after: Time after which the kernel closes a connection whose peer does not acknowledge
            data, seconds (TCP_USER_TIMEOUT, Linux only). None means the system default.

    Raises:
        SettingsError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is explicit because asyncio sets TCP_NODELAY only on sockets that name it.
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if cut_after is not None and sys.platform == "linux":
            # Accepted connections inherit the option. Closing a stalled connection in this process
            # would instead wait until its send buffer is empty.
            limit = int(cut_after * 1000)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        server.bind((host, port))
    except OSError as error:
        server.close()
        raise SettingsError(
            f"cannot listen for {what} on {host}:{port} ({error.strerror}): stop the process that "
            f"listens there, or set {setting} to a free port"
        ) from error
    return server


def dns_name(target: str) -> tuple[str, int] | None:
    """Return the name and port of ``dns:///name:port``, or None for ``host:port``.

    Raises:
        ValueError: The target has neither form.
    """
    host, _, port = target.removeprefix(DNS_SCHEME).rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{target!r} is neither host:port nor dns:///name:port")
    return (host, int(port)) if target.startswith(DNS_SCHEME) else None


async def addresses_of(host: str, port: int) -> set[str]:
    """Return all addresses behind a host name, as host:port.

    Raises:
        OSError: The name cannot be resolved.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    return _joined(found, port)


async def expanded(targets: Iterable[str]) -> list[Target]:
    """Resolve targets to addresses, without duplicates and in a stable order.

    Raises:
        OSError: A name cannot be resolved.
        ValueError: A target is neither host:port nor dns:///name:port.
    """
    found: dict[str, Target] = {}
    for target in targets:
        name = dns_name(target)
        if name is None:
            found.setdefault(target, Target(target))
            continue
        for address in sorted(await addresses_of(*name)):
            found.setdefault(address, Target(address, name[0]))
    return list(found.values())


def _joined(found: Iterable[tuple[Any, ...]], port: int) -> set[str]:
    return {
        f"[{address[0]}]:{port}" if family == socket.AF_INET6 else f"{address[0]}:{port}"
        for family, _, _, _, address in found
    }

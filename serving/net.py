"""Names that stand for several routers.

``dns:///name:port`` is every address behind the name, such as a headless Service's; a plain
``host:port`` is one. Each router of a set decides for itself where it sends work, so what is said
to one address that balances over them reaches only one of them.
"""

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

DNS_SCHEME = "dns:///"


@dataclass(frozen=True, slots=True)
class Target:
    """One address to dial."""

    address: str
    """host:port."""
    server_name: str | None = None
    """The name that it was resolved from, which its certificate has; none: it was given so."""


def dns_name(target: str) -> tuple[str, int] | None:
    """Return name and port of ``dns:///name:port``, or none for a plain ``host:port``.

    Raises:
        ValueError: it is neither.
    """
    host, _, port = target.removeprefix(DNS_SCHEME).rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{target!r} is neither host:port nor dns:///name:port")
    return (host, int(port)) if target.startswith(DNS_SCHEME) else None


async def addresses_of(host: str, port: int) -> set[str]:
    """Return all addresses behind a name, as host:port.

    Raises:
        OSError: the name cannot be resolved.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    return _joined(found, port)


async def expanded(targets: Iterable[str]) -> list[Target]:
    """Return every address that the targets stand for, each once and in a stable order.

    Raises:
        OSError: a name cannot be resolved.
        ValueError: a target is neither host:port nor dns:///name:port.
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

"""Binds the ports that clients and ranks dial."""

import socket
import sys

from serving.errors import SettingsError


def bind(
    what: str, host: str, port: int, setting: str, *, cut_after: float | None = None
) -> socket.socket:
    """Bind an address.

    Args:
        what: what will be spoken there, for the error.
        host: an address, IPv4 or IPv6.
        port: 0 takes any free one.
        setting: where the port is set, for the error.
        cut_after: seconds after which the kernel cuts a connection whose client takes nothing.

    Raises:
        SettingsError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio turns Nagle's algorithm off only where it is.
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if cut_after is not None and sys.platform == "linux":
            # Connections inherit it: the kernel cuts one whose client takes nothing for so long,
            # or is gone. Closing it here would wait for what it has still to send.
            limit = int(cut_after * 1000)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit)
        server.bind((host, port))
    except OSError as error:
        server.close()
        raise SettingsError(
            f"cannot listen for {what} on {host}:{port} ({error.strerror}): stop what listens "
            f"there, or set {setting} to a free port"
        ) from error
    return server

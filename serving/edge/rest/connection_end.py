"""Connections whose end is significant: the end of an HTTP/1.0 body, or a half-closed client."""

import asyncio
import socket

_CLOSE_WAIT = 8
"""tcpi_state of a connection whose client has sent FIN but no RST."""


class _UntilClose(int):
    """A content length that uvicorn's countdown accepts for a body of any size."""

    def __lt__(self, other: object) -> bool:
        return False

    def __sub__(self, other: object) -> "_UntilClose":
        return self

    def __eq__(self, other: object) -> bool:
        return other == 0

    def __ne__(self, other: object) -> bool:
        return other != 0

    __hash__ = int.__hash__


UNTIL_CLOSE = _UntilClose()
"""The length of a body that ends when the connection closes."""


def is_reset(transport: asyncio.Transport) -> bool:
    """Return whether a half-closed connection has been reset; always False outside Linux."""
    info = getattr(socket, "TCP_INFO", None)
    if info is None:
        return False
    try:
        state: bytes = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, info, 1)
    except OSError:
        return True
    return state[0] != _CLOSE_WAIT

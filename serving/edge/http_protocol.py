"""uvicorn's HTTP parser with bounds: how large a request's head may be, and how slow.

uvicorn bounds neither: a client that sends headers without end would fill the memory, and one
that sends nothing would keep its connection for ever.
"""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.settings import SecuritySettings

_OVERHEAD = 4
"""Bytes of a header beside its name and value: colon, space, line end."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. Bounds are the class's: uvicorn makes the objects."""

    max_head_bytes: ClassVar[int] = 32 * 2**10
    max_headers: ClassVar[int] = 100
    head_timeout: ClassVar[float] = 20.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._received = 0
        """Bytes since the last head was complete, while a head is not."""
        self._parsed = 0
        self._too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, but for a head that never ends."""
        if self._too_large:
            return
        if self._in_head:
            # The parser keeps an unfinished header to itself, so what came in is counted too.
            self._received += len(data)
        super().data_received(data)
        if self._in_head and self._received > self.max_head_bytes and not self._too_large:
            self._refuse()

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head = True
        self._parsed = 0
        if self._head_timer is None:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        self._count(len(name) + len(value) + _OVERHEAD)
        super().on_header(name, value)
        if len(self.headers) > self.max_headers:
            self._too_large = True
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        """End the head and start the request."""
        self._in_head = False
        self._received = 0
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refuses, and what we made it refuse."""
        self._stop_timer()
        if self._too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the middleware answers, and there is nothing to install."""

    def _count(self, size: int) -> None:
        self._parsed += size
        if self._parsed > self.max_head_bytes:
            self._too_large = True
            raise ValueError("the head is too large")

    def _refuse(self) -> None:
        self._too_large = True
        self._stop_timer()
        self.transport.write(_TOO_LARGE)
        self.transport.close()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout, self._timed_out)

    def _timed_out(self) -> None:
        self._head_timer = None
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(settings: SecuritySettings) -> type[BoundedHttpProtocol]:
    """Return the protocol class with the settings' bounds."""
    return type(
        "SettledHttpProtocol",
        (BoundedHttpProtocol,),
        {
            "max_head_bytes": settings.max_header_bytes,
            "max_headers": settings.max_headers,
            "head_timeout": settings.header_timeout,
        },
    )

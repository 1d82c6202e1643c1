"""uvicorn's HTTP parser with bounds: how large a request's head may be, how slow, and how much is
parsed at a time.

uvicorn bounds none of it: a client that sends headers without end would fill the memory, one
that sends nothing would keep its connection for ever, and one that sends thousands of requests or
chunks in one write would stop all others until they are parsed.
"""

import asyncio
import socket
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.edge.rest.ignored_upgrade import IgnoresUpgrades
from serving.h2grpc.turns import Turns
from serving.settings import SecuritySettings

_OVERHEAD = 4
"""Bytes of a header beside its name and value: colon, space, line end."""
_PIECE = 2**11
"""Bytes that are parsed without a look at the clock: some sixty of the shortest requests, or some
hundred chunks of a byte."""
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)
_BAD_TEXT = b"Invalid HTTP request received."
_BAD_HEAD = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n" % len(_BAD_TEXT)
)


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_FIRST_LOOK, _LAST_LOOK = 0.05, 1.0
"""Seconds between two looks at whether a half-closed client is still there; they double."""
_CLOSE_WAIT = 8
"""tcpi_state of a connection whose client has sent its end, and no reset."""


class _UntilClose(int):
    """A length that every body has, as uvicorn counts it down."""

    def __lt__(self, other: object) -> bool:
        return False

    def __sub__(self, other: object) -> "_UntilClose":
        return self

    def __eq__(self, other: object) -> bool:
        return other == 0

    def __ne__(self, other: object) -> bool:
        return other != 0

    __hash__ = int.__hash__


_UNTIL_CLOSE = _UntilClose()


class BoundedHttpProtocol(IgnoresUpgrades, HttpToolsProtocol):
    """One connection. Bounds are the class's: uvicorn makes the objects."""

    max_head_bytes: ClassVar[int] = 32 * 2**10
    max_headers: ClassVar[int] = 100
    head_timeout: ClassVar[float] = 20.0
    turns: ClassVar[Turns]
    """Shared by the connections of a server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._received = 0
        """Bytes since the last head was complete, while a head is not."""
        self._parsed = 0
        self._too_large = False
        self._refusal: bytes | None = None
        """What is said before the end, behind the answers that are under way; empty: nothing."""
        self._half_closed = False
        self._running: RequestResponseCycle | None = None
        """The request that is being answered, or was last; ``cycle`` is the one parsed last."""
        self._unread = bytearray()
        """What came and is not parsed yet."""
        self._holding = False
        """The transport reads nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self.flow = FlowControl(cast("asyncio.Transport", self))  # which it pauses and resumes
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers, and what is not parsed."""
        self._stop_timer()
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        self._unread.clear()
        if self._running is not None and not self._running.response_complete:
            # uvicorn tells the last request only, and this one would be answered to its end.
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, some of it now; the rest when others had their turn."""
        if self._refusal is not None:
            return
        self._unread += data
        self.turns.arrived(self)
        self._hold_or_go_on()

    def read_on(self, until: float) -> bool:
        """Parse until the clock shows ``until``; whether there is more that can be parsed now.

        A request that waits for the one before it, or a body that waits for its request to take
        it, holds up what is behind it: it is parsed when they have gone on.
        """
        unread, clock = self._unread, self.turns.clock
        while unread and not self.transport.is_closing():
            if self.pipeline or self.flow.read_paused:
                return False
            if self._refusal is not None:
                break
            piece = bytes(unread[:_PIECE])
            del unread[:_PIECE]
            self._parse(piece)
            if clock() >= until:
                break
        if self._refusal is not None or self.transport.is_closing():
            unread.clear()
        if self._half_closed and not unread and not self._may_answer():
            self._end()
        if self._holding:
            self._hold_or_go_on()
        return bool(unread)

    def pause_reading(self) -> None:
        """Take in nothing more; for ``flow``, which notes why."""
        self._hold_or_go_on()

    def resume_reading(self) -> None:
        """Take in more, first of what has come already; for ``flow``."""
        if self._unread:
            self.turns.wait(self)
        else:
            self._hold_or_go_on()

    def on_response_complete(self) -> None:
        """Start the next request, and parse those behind it."""
        last = not self.pipeline
        super().on_response_complete()
        if last and (self._refusal is not None or (self._half_closed and not self._unread)):
            self._end()
        elif self._unread:
            self.turns.wait(self)

    def _hold_or_go_on(self) -> None:
        """Let the client send only what can be taken in."""
        hold = bool(self._unread) or self.flow.read_paused
        if hold is self._holding or self.transport.is_closing():
            return
        self._holding = hold
        if hold:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        """Parse, but for a head that never ends."""
        if self._in_head:
            # The parser keeps an unfinished header to itself, so what came in is counted too.
            self._received += len(data)
        super().data_received(data)
        if self._in_head and self._received > self.max_head_bytes:
            self._refuse(_TOO_LARGE)

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
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scope["http_version"] == "1.0":
            # Such a client knows no chunks: the connection's end is the end of the answer.
            self.cycle.chunked_encoding = False
            self.cycle.expected_content_length = _UNTIL_CLOSE

    def eof_received(self) -> bool:  # type: ignore[override]
        """Let a client that sends no more have its answer, if it is still there to read it.

        Returns:
            Whether the connection stays open for writing.
        """
        encrypted = self.transport.get_extra_info("sslcontext") is not None
        if encrypted or not (self._unread or self._may_answer()):
            return False
        running = self._running
        if (
            running is not None
            and not running.response_started
            and running.scope["http_version"] == "1.1"
        ):
            # What every client skips (RFC 9110, 15.2). A closed socket answers it with a reset.
            self.transport.write(_CONTINUE)
        self._half_closed = True
        if not self._unread:
            self.cycle.keep_alive = False
        self._look_at_half_closed(_FIRST_LOOK)
        return True

    def _may_answer(self) -> bool:
        """Whether a request that came whole waits for its answer; forget one that did not."""
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()
            assert self._running is not None  # it is what that one waited for
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running
        running = self._running
        return running is not None and not running.response_complete and not running.more_body

    def _look_at_half_closed(self, interval: float) -> None:
        self._look_timer = None
        if self.transport.is_closing():
            return
        if _is_reset(self.transport):
            self.transport.abort()
            return
        self._look_timer = self.loop.call_later(
            interval, self._look_at_half_closed, min(2 * interval, _LAST_LOOK)
        )

    def send_400_response(self, msg: str) -> None:
        """Answer what the parser refuses, and what we made it refuse."""
        del msg
        self._refuse(_TOO_LARGE if self._too_large else _BAD_HEAD + _BAD_TEXT)

    def forget_rest(self) -> None:
        """Drop what came behind a request whose client goes on in another protocol."""
        self._unread.clear()

    def _count(self, size: int) -> None:
        self._parsed += size
        if self._parsed > self.max_head_bytes:
            self._too_large = True
            raise ValueError("the head is too large")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, answer: bytes) -> None:
        """Read no further; send ``answer`` behind the answers that are under way, and close."""
        if self._refusal is not None:
            return
        self._refusal = answer
        self._unread.clear()
        self._stop_timer()
        if self._may_answer():
            return
        running = self._running
        if running is not None and running.more_body:
            # What cannot be read is its own body.
            if running.response_started:
                self._refusal = b""
            elif running.scope["method"] == "HEAD":
                self._refusal = answer.removesuffix(_BAD_TEXT)
        self._end()

    def _end(self) -> None:
        if not self.transport.is_closing():
            if self._refusal:
                self.transport.write(self._refusal)
            self.transport.close()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout, self._timed_out)

    def _timed_out(self) -> None:
        self._head_timer = None
        if self._holding:
            self._expect_head()  # the client cannot send it
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _is_reset(transport: asyncio.Transport) -> bool:
    """Tell whether a half-closed connection was reset meanwhile (Linux; elsewhere unknown)."""
    info = getattr(socket, "TCP_INFO", None)
    if info is None:
        return False
    try:
        state: bytes = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, info, 1)
    except OSError:
        return True
    return state[0] != _CLOSE_WAIT


def bounded_protocol(settings: SecuritySettings) -> type[BoundedHttpProtocol]:
    """Return the protocol class with the settings' bounds."""
    return type(
        "SettledHttpProtocol",
        (BoundedHttpProtocol,),
        {
            "max_head_bytes": settings.max_header_bytes,
            "max_headers": settings.max_headers,
            "head_timeout": settings.header_timeout,
            "turns": Turns(),
        },
    )

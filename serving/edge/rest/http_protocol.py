"""uvicorn's HTTP protocol with limits on heads and parsing; heads must obey ``head_rules``.

uvicorn has no such limits: a client that sends endless headers exhausts memory, one that sends
nothing keeps its connection open, and one that sends thousands of requests or chunks in one write
blocks all other connections until they are parsed.
"""

import asyncio
import sys
from typing import Any, ClassVar, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.edge.rest.connection_end import UNTIL_CLOSE, is_reset
from serving.edge.rest.head_rules import head_refusal, origin_form
from serving.edge.rest.http_upgrade import body_headers, parser_of_body
from serving.edge.rest.joined_head import JoinedHead
from serving.h2grpc.turns import Turns
from serving.settings import SecuritySettings

_OVERHEAD = 4
"""Overhead per header, bytes: colon, space, line end."""
_PIECE = 2**11
"""Bytes parsed between two checks of the clock: about sixty of the shortest requests, or a few
hundred one-byte chunks."""
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
_WEBSOCKET = b"websocket"
_FIRST_CHECK, _LAST_CHECK = 0.05, 1.0
"""First and maximum interval between checks whether a half-closed client is still connected,
seconds; the interval doubles each time."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. Limits are class attributes because uvicorn creates the instances."""

    max_head_bytes: ClassVar[int] = 32 * 2**10
    max_headers: ClassVar[int] = 100
    head_timeout: ClassVar[float] = 20.0
    body_timeout: ClassVar[float] = 60.0
    """Time to send the rest of a body whose request has been answered, seconds; as for a body that
    is read (``request_body``)."""
    turns: ClassVar[Turns]
    """Scheduler shared by all connections of a server."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._received = 0
        """Number of bytes received since the last head or part of a body."""
        self._parsed = 0
        """Number of parsed bytes of the current head and trailers."""
        self._fields = 0
        """Number of headers and trailers of the current request."""
        self._too_large = False
        self._refusal: bytes | None = None
        """Response to send after the responses in progress, before closing. If empty, the
        connection is closed without a response."""
        self._half_closed = False
        self._running: RequestResponseCycle | None = None
        """The current or last request to be answered; ``cycle`` is the last one parsed."""
        self._unread = bytearray()
        """Received data not parsed yet."""
        self._reading_paused = False
        """Whether reading from the transport is paused."""
        self._piece = b""
        """Data last passed to the parser."""
        self._body_follows = False
        """Whether the parser would mistake the request's body for data of another protocol."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout for the first request head."""
        super().connection_made(transport)
        self.flow = FlowControl(cast("asyncio.Transport", self))  # calls the methods below
        self._expect_head(self.head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers and drop unparsed data."""
        self._stop_timer()
        if self._check_timer is not None:
            self._check_timer.cancel()
            self._check_timer = None
        self._unread.clear()
        if self._running is not None and not self._running.response_complete:
            # uvicorn notifies only the last request parsed; this one would continue to the end.
            self._running.disconnected = True
            self._running.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Buffer data and parse part of it; the rest waits for the connection's next turn."""
        if self._refusal is not None:
            return
        self._unread += data
        self.turns.arrived(self)
        self._update_reading()

    def read_until(self, until: float) -> bool:
        """Parse until the clock reaches ``until``.

        Parsing pauses while a request waits for the previous one, and while a body is not being
        read yet.

        Returns:
            Whether more data can be parsed now.
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
        if self._half_closed and not unread and not self._response_due():
            self._end()
        if self._reading_paused:
            self._update_reading()
        return bool(unread)

    def pause_reading(self) -> None:
        """Pause reading; called by ``flow``, which stores the reason."""
        self._update_reading()

    def resume_reading(self) -> None:
        """Resume reading, buffered data first; called by ``flow``."""
        if self._unread:
            self.turns.wait(self)
        else:
            self._update_reading()

    def on_response_complete(self) -> None:
        """Start the next request and parse the data after it."""
        last = not self.pipeline
        self._send_held_head()
        super().on_response_complete()
        if last and self.cycle.more_body and not self.transport.is_closing():
            self._expect_head(self.body_timeout)
        if last and (self._refusal is not None or (self._half_closed and not self._unread)):
            self._end()
        elif self._unread:
            self.turns.wait(self)

    def _update_reading(self) -> None:
        """Pause or resume reading from the transport."""
        hold = bool(self._unread) or self.flow.read_paused
        if hold is self._reading_paused or self.transport.is_closing():
            return
        self._reading_paused = hold
        if hold:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _parse(self, data: bytes) -> None:
        """Parse data, and reject a head that exceeds the limit."""
        # The parser does not report incomplete headers and trailers, nor extensions of chunks, so
        # received bytes are counted too.
        self._received += len(data)
        self._piece = data
        super().data_received(data)
        if self._received > self.max_head_bytes:
            self._refuse(_TOO_LARGE)
        elif self._head_timer is None and self._idle and not self.transport.is_closing():
            # Even data that begins no request, such as an empty line, ends uvicorn's timeout for
            # idle connections.
            self._expect_head(self.head_timeout)

    def on_message_begin(self) -> None:
        """Start counting a new head."""
        super().on_message_begin()
        self._in_head = True
        self._parsed = self._fields = 0

    def on_url(self, url: bytes) -> None:
        """Count the request line."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header; drop a trailer, which must not pass as a header (RFC 9110, 6.5.1)."""
        self._count(len(name) + len(value) + _OVERHEAD)
        self._fields += 1
        if self._fields > self.max_headers:
            self._too_large = True
            raise ValueError("too many headers")
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Finish the head and start the request."""
        self._in_head = False
        self._received = 0
        self._stop_timer()
        version = self.parser.get_http_version()
        if refusal := head_refusal(version, self.parser.get_method(), self.headers):
            self._refuse(refusal)
            raise ValueError("the request head is refused")
        self.url = origin_form(self.url)
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, section 10.1.1
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self.cycle.transport = cast("asyncio.Transport", JoinedHead(self.transport, self.loop))
            if version == "1.0":
                # HTTP/1.0 has no chunked encoding: closing the connection ends the response.
                self.cycle.chunked_encoding = False
                self.cycle.expected_content_length = UNTIL_CLOSE
        self._body_follows = self.parser.should_upgrade() and bool(body_headers(self.headers))

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        self._received = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Finish the request, unless the parser skipped its body."""
        if not self._body_follows:
            self._received = 0
            self._stop_timer()
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Continue parsing after the head of a request that offers another protocol.

        uvicorn calls this while handling the parser's exception, which holds the position after the
        head.
        """
        error = sys.exception()
        if self._get_upgrade() == _WEBSOCKET or not isinstance(error, httptools.HttpParserUpgrade):
            # The middleware rejects WebSockets; the data after the head is not HTTP.
            self._unread.clear()
            return
        if self._body_follows:
            self._body_follows = False
            self.parser = parser_of_body(self, body_headers(self.headers))
        self._unread[:0] = self._piece[error.args[0] :]

    def eof_received(self) -> bool:  # type: ignore[override]
        """Finish responses to a client that has closed only its sending side.

        Returns:
            Whether the connection stays open for writing.
        """
        encrypted = self.transport.get_extra_info("sslcontext") is not None
        if encrypted or not (self._unread or self._response_due()):
            return False
        running = self._running
        if (
            running is not None
            and not running.response_started
            and running.scope["http_version"] == "1.1"
        ):
            # Clients ignore it (RFC 9110, section 15.2); a closed socket replies with a reset.
            self.transport.write(_CONTINUE)
        self._half_closed = True
        if not self._unread:
            self.cycle.keep_alive = False
        self._check_half_closed(_FIRST_CHECK)
        return True

    def _response_due(self) -> bool:
        """Return whether a complete request awaits its response; drop an incomplete one."""
        if self.pipeline and self.cycle.more_body:
            self.pipeline.popleft()
            assert self._running is not None  # the dropped request waited for it
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running
        running = self._running
        return running is not None and not running.response_complete and not running.more_body

    def _check_half_closed(self, interval: float) -> None:
        self._check_timer = None
        if self.transport.is_closing():
            return
        if is_reset(self.transport):
            self.transport.abort()
            return
        self._check_timer = self.loop.call_later(
            interval, self._check_half_closed, min(2 * interval, _LAST_CHECK)
        )

    def send_400_response(self, msg: str) -> None:
        """Respond to data rejected by the parser or by one of its callbacks above."""
        del msg
        self._refuse(_TOO_LARGE if self._too_large else _BAD_HEAD + _BAD_TEXT)

    def _count(self, size: int) -> None:
        self._parsed += size
        if self._parsed > self.max_head_bytes:
            self._too_large = True
            raise ValueError("the request head is too large")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _refuse(self, answer: bytes) -> None:
        """Stop reading, send ``answer`` after the responses in progress, and close."""
        if self._refusal is not None:
            return
        self._refusal = answer
        self._unread.clear()
        self._stop_timer()
        if self._response_due():
            return
        running = self._running
        if running is not None and running.more_body:
            # The invalid data is the body of the running request.
            if running.response_started:
                self._refusal = b""
            elif running.scope["method"] == "HEAD":
                self._refusal = answer.removesuffix(_BAD_TEXT)
        self._end()

    def _end(self) -> None:
        self._send_held_head()
        if not self.transport.is_closing():
            if self._refusal:
                self.transport.write(self._refusal)
            self.transport.close()

    def _send_held_head(self) -> None:
        transport: object = None if self._running is None else self._running.transport
        if isinstance(transport, JoinedHead):
            transport.flush()

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self._running is None or self._running.response_complete

    def _expect_head(self, seconds: float) -> None:
        """Close the connection if the head of the next request does not arrive in time."""
        self._stop_timer()
        self._head_timer = self.loop.call_later(seconds, self._timed_out)

    def _timed_out(self) -> None:
        self._head_timer = None
        if self._reading_paused:
            # The head cannot arrive.
            self._expect_head(self.head_timeout)
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(settings: SecuritySettings) -> type[BoundedHttpProtocol]:
    """Return a protocol class with the limits of the settings."""
    return type(
        "ConfiguredHttpProtocol",
        (BoundedHttpProtocol,),
        {
            "max_head_bytes": settings.max_header_bytes,
            "max_headers": settings.max_headers,
            "head_timeout": settings.header_timeout,
            "turns": Turns(),
        },
    )

"""One HTTP/2 connection of a client: h2's state, the socket, and its calls.

Incoming frames are processed in time slices (``turns``) and charged to a ``budget``. ``output`` is
the sending side.
"""

import asyncio
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import cast

import structlog
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import DataFrame, GoAwayFrame

from serving.h2grpc.budget import FREE_BYTES, UNSERVED_COST, Budget
from serving.h2grpc.call import Call
from serving.h2grpc.host import ServerHost
from serving.h2grpc.http2 import Http2
from serving.h2grpc.keepalive import Keepalive
from serving.h2grpc.output import Output
from serving.h2grpc.peer import address_of, auth_context_of

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MAX_FRAMES = 64
"""Maximum number of frames processed per slice."""
_MAX_CANCELS = 16
"""Maximum number of calls of a lost connection that are cancelled per slice."""
_LINGER = 1.0
"""Time for a flooding client to read the GOAWAY, seconds. Until then, its data is dropped; a closed
socket would reply with a TCP reset, which discards the GOAWAY."""
_MAX_DROPPED = 2**24
"""Maximum amount of data dropped on a lost connection, bytes; beyond that, it is aborted."""
_HEADER_MARGIN = 2**13
"""Margin above the header limit within which only the call is refused, bytes; beyond it the
connection is closed."""
_PREMATURE_AGE = 1.0
"""Age below which the reset of a call counts as premature, seconds."""
_MAX_PREMATURE = 1000
"""Maximum number of premature resets on a connection, less the number of successful calls."""

_GOAWAY_PING = b"shutdown"
"""Payload of the PING whose acknowledgement shows that the client has received the GOAWAY."""
_KEEPALIVE_PING = b"liveness"
"""Payload of the keepalive PING."""

_H1_TEXT = b"This port serves gRPC over HTTP/2. Send REST requests to the REST port.\n"
_H1_RESPONSE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_H1_TEXT), _H1_TEXT)
)
_H1_METHODS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ")


class Connection(asyncio.Protocol):
    """Serves one connection."""

    def __init__(self, server: ServerHost) -> None:
        self.server = server
        self.loop = asyncio.get_running_loop()
        self.calls: dict[int, Call] = {}
        self.peer = ""
        self.lost = False
        """Whether sending and reading have stopped."""
        limit = server.max_metadata_bytes
        self.h2 = Http2(
            min(2 * limit, limit + _HEADER_MARGIN),
            max_streams=server.max_streams,
            open_streams=self.calls,
        )
        self._budget = Budget(self.loop.time())
        self.output = Output(self.h2, self._budget)
        self.keepalive = Keepalive(
            server.keepalive_time,
            server.keepalive_timeout,
            ping=self._ping,
            on_dead=self._client_dead,
            busy=lambda: self._reading_paused,
        )
        self._transport: asyncio.Transport | None = None
        self._preface_received = False
        self._goaway_sent = False
        self._premature = 0
        self._reading_paused = False
        """Whether unprocessed data is buffered and the transport is paused."""
        self._dropped_bytes = 0
        self._abort_timer: asyncio.TimerHandle | None = None

    # -- asyncio's protocol -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection and start keepalive."""
        self._transport = self.output.transport = cast("asyncio.Transport", transport)
        self.peer = self.output.peer = address_of(transport)
        self.server.connected(self)
        self.keepalive.start()
        if self.server.stopping:
            self.close()  # its TLS handshake ended after the listening socket was closed

    def data_received(self, data: bytes) -> None:
        """Buffer data, and process it as far as the connection's time slice allows."""
        if self.lost:
            self._drop_data(len(data))
            return
        keepalive = self.keepalive
        keepalive.last_received = self.loop.time()
        keepalive.pinged = False
        if not self._preface_received:
            self._preface_received = True
            if data.startswith(_H1_METHODS):
                self._close_with(_H1_RESPONSE)
                return
            self.h2.greet()
        try:
            self.h2.incoming_buffer.add_data(data)
        except ProtocolError as error:
            self._fail(error)
            return
        if self.server.turns.arrived(self) and not self._reading_paused and not self.lost:
            self._set_reading_paused(paused=True)

    def read_until(self, until: float) -> bool:
        """Process frames until the server's clock reaches ``until``.

        On a lost connection, cancel some of its calls instead.

        Returns:
            Whether work is left.
        """
        was_lost = self.lost
        if was_lost:
            return self._cancel_some()
        try:
            more = self._read_frames(until)
        except Exception as error:  # noqa: BLE001  it is logged
            self._fail(error)
            more = False
        if self.lost:
            return False  # ``_stop`` has queued the rest of its calls
        self.output.flush_h2()
        if self._reading_paused and not more:
            self._set_reading_paused(paused=False)
        return more

    def _read_frames(self, until: float) -> bool:
        h2, budget, clock = self.h2, self._budget, self.server.clock
        frames, unread = h2.incoming_buffer, h2.incoming_buffer.unread
        for _ in range(_MAX_FRAMES):
            if not unread or (frame := next(frames, None)) is None:
                return False
            if type(frame) is not DataFrame or len(frame.data) < FREE_BYTES:
                budget.left -= 1
                if budget.left < 0 and budget.overdrawn(self.loop.time()):
                    self._close_flooding()
                    return True
            for event in h2.receive(frame):
                self._handle(event)
            if self.lost or clock() >= until:
                break
        return True

    def pause_writing(self) -> None:
        """Pause sending, because the client is reading too slowly."""
        self.output.paused = True

    def resume_writing(self) -> None:
        """Resume sending."""
        self.output.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all calls."""
        del exc
        self._stop()
        self.server.disconnected(self)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the TLS properties of the client, keyed by gRPC's property names."""
        assert self._transport is not None
        return auth_context_of(self._transport)

    # -- used by calls ----------------------------------------------------------------

    def remove_call(self, call: Call) -> None:
        """Remove a call that has ended."""
        if self.calls.pop(call.stream_id, None) is not None:
            if self._premature:
                self._premature -= call.succeeded
            if call.served:
                self._budget.left += 1
            elif not call.cancelled():
                self._budget.left -= UNSERVED_COST
        self.output.waiting.pop(call, None)

    # -- shutdown -----------------------------------------------------------------------

    def go_away(self) -> None:
        """Send GOAWAY: the client makes new calls elsewhere, and running calls continue.

        Calls that arrive before the client acknowledges the PING are served. Later ones are refused
        as not processed, which clients retry elsewhere automatically (RFC 9113, section 6.8).
        """
        if not self._preface_received:
            self.close()
            return
        if not self._goaway_sent:
            self._goaway_sent = True
            self._write_goaway(2**31 - 1)
            self.h2.ping(_GOAWAY_PING)
            self.output.flush_h2()

    @property
    def refusing(self) -> bool:
        """Whether new calls are refused after ``go_away``; True if it has not been called."""
        return self.h2.refusing or not self._goaway_sent

    def close(self) -> None:
        """Close the connection after sending pending data."""
        self._close_with(b"")

    def abort(self) -> None:
        """Close the connection immediately."""
        if self._transport is not None:
            self._transport.abort()

    # -- internals ----------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        # All other events are fully handled by h2.
        match event:
            case RequestReceived():
                self._start_call(event)
            case DataReceived():
                self._feed(event)
            case StreamEnded():
                if (ended := self.calls.get(event.stream_id)) is not None:
                    ended.half_close()
            case StreamReset():
                call = self.calls.get(event.stream_id)
                self._count_reset(event.stream_id, call)
                if call is not None:
                    call.cancel()
            case WindowUpdated():
                self._wake(event.stream_id)
            case RemoteSettingsChanged():
                self.output.wake()
            case PingAckReceived(ping_data=data) if data == _GOAWAY_PING:
                self.h2.refusing = True
                self._write_goaway(self.h2.highest_inbound_stream_id)
                self.server.goaway_confirmed.set()

    def _wake(self, stream_id: int | None) -> None:
        """Let a call retry sending, or all calls if the connection's window has grown."""
        if not stream_id:
            self.output.wake()
        elif self.output.waiting:
            self.output.wake_one(self.calls.get(stream_id))

    def _write_goaway(self, last_stream_id: int) -> None:
        frame = GoAwayFrame(0)
        frame.last_stream_id = last_stream_id
        frame.error_code = ErrorCodes.NO_ERROR
        self.output.write(frame.serialize())

    def _start_call(self, event: RequestReceived) -> None:
        assert event.stream_id is not None
        stream = self.h2.streams.get(event.stream_id)
        if stream is None:
            return  # reset by a frame that arrived together with it
        call = Call(self, stream, event.headers)
        self.calls[event.stream_id] = call
        call.start()

    def _feed(self, event: DataReceived) -> None:
        assert event.stream_id is not None
        size = event.flow_controlled_length or 0
        call = self.calls.get(event.stream_id)
        if call is None:
            self.output.acknowledge(event.stream_id, size)
            return
        data = event.data or b""
        if (call.feed(data, size) or event.stream_ended) and len(data) < FREE_BYTES:
            self._budget.left += 1

    def _count_reset(self, stream_id: int, call: Call | None) -> None:
        """Count premature resets (CVE-2023-44487, CVE-2025-8671).

        A stream without a call was malformed, or was reset in the same data that opened it.
        """
        if call is None or self.loop.time() - call.started_at < _PREMATURE_AGE:
            self._premature += 1
        if self._premature > _MAX_PREMATURE:
            self._close_flooding(stream_id)

    def _close_flooding(self, last_stream_id: int | None = None) -> None:
        """Close the connection of a flooding client with ENHANCE_YOUR_CALM."""
        log.warning("connection closed: too many frames or cancelled calls", peer=self.peer)
        frame = GoAwayFrame(0)
        frame.last_stream_id = last_stream_id or self.h2.highest_inbound_stream_id
        frame.error_code = ErrorCodes.ENHANCE_YOUR_CALM
        self._close_with(self.h2.data_to_send() + frame.serialize(), linger=_LINGER)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, ProtocolError):
            log.info("connection closed: HTTP/2 protocol error", peer=self.peer, reason=str(error))
            self._close_with(self.h2.fail(error))
        else:
            log.error(
                "connection closed: cannot process received data", peer=self.peer, exc_info=error
            )
            self._close_with(b"")

    def _set_reading_paused(self, *, paused: bool) -> None:
        """Pause or resume reading from the transport."""
        self._reading_paused = paused
        if self._transport is None or self._transport.is_closing():
            return
        if paused:
            self._transport.pause_reading()
        else:
            self.keepalive.last_received = self.loop.time()
            self._transport.resume_reading()

    def _drop_data(self, size: int) -> None:
        self._dropped_bytes += size
        if self._dropped_bytes > _MAX_DROPPED:
            self.abort()

    def _close_with(self, final_data: bytes, *, linger: float = 0.0) -> None:
        """Send ``final_data`` and close the connection, or abort it after ``linger`` seconds."""
        transport, output = self._transport, self.output
        if self.lost or transport is None or transport.is_closing():
            return
        if final_data:
            output.unsent.append(final_data)
        if output.unsent:
            output.flush()
        self._stop()
        patience = self.server.keepalive_timeout
        if linger and not output.paused:
            if transport.can_write_eof():  # not with TLS
                transport.write_eof()
            if self._reading_paused:
                self._set_reading_paused(paused=False)
            patience = min(patience, linger)
        else:
            transport.close()
        # Closing waits until the client has read all data.
        self._abort_timer = self.loop.call_later(patience, self.abort)

    def _stop(self) -> None:
        """Stop sending and reading, and cancel all calls."""
        self.lost = self.output.closed = True
        self.h2.release()
        self.keepalive.stop()
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        if self._cancel_some():
            self.server.turns.wait(self)

    def _cancel_some(self) -> bool:
        """Cancel some calls of a lost connection, and return whether more are left."""
        granted = self.server.cancel_limit.take(min(_MAX_CANCELS, len(self.calls)))
        for call in tuple(islice(self.calls.values(), granted)):
            call.cancel()
        return bool(self.calls)

    def _ping(self) -> None:
        if not self._preface_received:
            self.abort()
            return
        self.h2.ping(_KEEPALIVE_PING)
        self.output.flush_h2()

    def _client_dead(self, idle: float) -> None:
        log.info(
            "connection closed: no response to keepalive ping", peer=self.peer, silent=round(idle)
        )
        self.abort()

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

from serving.h2grpc.budget import UNSERVED, WORTH, Budget
from serving.h2grpc.call import Call
from serving.h2grpc.host import ServerHost
from serving.h2grpc.http2 import Http2
from serving.h2grpc.keepalive import Keepalive
from serving.h2grpc.output import Output
from serving.h2grpc.peer import address_of, auth_context_of

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_FRAMES = 64
"""Maximum number of frames processed per slice."""
_CUTS = 16
"""Maximum number of calls of a lost connection that are cancelled per slice."""
_LINGER = 1.0
"""Time for a flooding client to read the GOAWAY, seconds. Its data is dropped meanwhile; a closed
socket would reply with a TCP reset, which discards the GOAWAY."""
_MAX_DROPPED = 2**24
"""Maximum amount of data dropped on a lost connection, bytes; beyond that, it is aborted."""
_MORE_HEADERS = 2**13
"""Margin above the header limit within which only the call is refused, bytes; beyond it the
connection is closed."""
_PREMATURE = 1.0
"""Age below which the reset of a call counts as premature, seconds."""
_MAX_PREMATURE = 1000
"""Maximum number of premature resets on a connection, less the number of successful calls."""

_LEAVING = b"goes off"
"""Payload of the PING whose acknowledgement shows that the client has received the GOAWAY."""
_SILENT = b"are you?"
"""Payload of the keepalive PING."""

_H1_TEXT = b"This port speaks gRPC, over HTTP/2; REST has a port of its own.\n"
_H1_ANSWER = (
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
            min(2 * limit, limit + _MORE_HEADERS),
            max_streams=server.max_streams,
            served=self.calls,
        )
        self._budget = Budget(self.loop.time())
        self.output = Output(self.h2, self._budget)
        self.keepalive = Keepalive(
            server.keepalive_time,
            server.keepalive_timeout,
            ping=self._ping,
            dead=self._dead,
            busy=lambda: self._holding,
        )
        self._transport: asyncio.Transport | None = None
        self._greeted = False
        self._leaving = False
        self._premature = 0
        self._holding = False
        """Whether unprocessed data is buffered and the transport is paused."""
        self._dropped = 0
        self._end_timer: asyncio.TimerHandle | None = None

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
            self._drop(len(data))
            return
        keepalive = self.keepalive
        keepalive.heard_at = self.loop.time()
        keepalive.pinged = False
        if not self._greeted:
            self._greeted = True
            if data.startswith(_H1_METHODS):
                self._hang_up(_H1_ANSWER)
                return
            self.h2.greet()
        try:
            self.h2.incoming_buffer.add_data(data)
        except ProtocolError as error:
            self._broken(error)
            return
        if self.server.turns.arrived(self) and not self._holding and not self.lost:
            self._hold(more=True)

    def read_on(self, until: float) -> bool:
        """Process frames until the server's clock reaches ``until``.

        On a lost connection, cancel some of its calls instead.

        Returns:
            Whether work is left.
        """
        gone = self.lost
        if gone:
            return self._cut_some()
        try:
            more = self._read_frames(until)
        except Exception as error:  # noqa: BLE001  it is logged
            self._broken(error)
            more = False
        if self.lost:
            return False  # ``_lose`` has queued the rest of its calls
        self.output.flush_h2()
        if self._holding and not more:
            self._hold(more=False)
        return more

    def _read_frames(self, until: float) -> bool:
        h2, budget, clock = self.h2, self._budget, self.server.clock
        frames, unread = h2.incoming_buffer, h2.incoming_buffer.unread
        for _ in range(_FRAMES):
            if not unread or (frame := next(frames, None)) is None:
                return False
            if type(frame) is not DataFrame or len(frame.data) < WORTH:
                budget.left -= 1
                if budget.left < 0 and budget.overdrawn(self.loop.time()):
                    self._calm()
                    return True
            for event in h2.receive(frame):
                self._handle(event)
            if self.lost or clock() >= until:
                break
        return True

    def pause_writing(self) -> None:
        """Pause sending: the client is reading too slowly."""
        self.output.paused = True

    def resume_writing(self) -> None:
        """Resume sending."""
        self.output.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all calls."""
        del exc
        self._lose()
        self.server.disconnected(self)

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the TLS properties of the client, by gRPC's names."""
        assert self._transport is not None
        return auth_context_of(self._transport)

    # -- for calls --------------------------------------------------------------------

    def forget(self, call: Call) -> None:
        """Remove a call that has ended."""
        if self.calls.pop(call.stream_id, None) is not None:
            if self._premature:
                self._premature -= call.went_well
            if call.served:
                self._budget.left += 1
            elif not call.cancelled():
                self._budget.left -= UNSERVED
        self.output.waiting.pop(call, None)

    # -- shutdown -----------------------------------------------------------------------

    def go_away(self) -> None:
        """Send GOAWAY: the client makes new calls elsewhere, and running calls continue.

        Calls that arrive before the client acknowledges the PING are served. Later ones are refused
        as not processed, which clients retry elsewhere automatically (RFC 9113, section 6.8).
        """
        if not self._greeted:
            self.close()
            return
        if not self._leaving:
            self._leaving = True
            self._write_goaway(2**31 - 1)
            self.h2.ping(_LEAVING)
            self.output.flush_h2()

    @property
    def refusing(self) -> bool:
        """Whether new calls are refused after ``go_away``; also True if it has not been called."""
        return self.h2.refusing or not self._leaving

    def close(self) -> None:
        """Close the connection after sending pending data."""
        self._hang_up(b"")

    def abort(self) -> None:
        """Close the connection immediately."""
        if self._transport is not None:
            self._transport.abort()

    # -- inside -------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        # All other events are fully handled by h2.
        match event:
            case RequestReceived():
                self._begin(event)
            case DataReceived():
                self._feed(event)
            case StreamEnded():
                if (ended := self.calls.get(event.stream_id)) is not None:
                    ended.half_close()
            case StreamReset():
                given_up = self.calls.get(event.stream_id)
                self._count_reset(event.stream_id, given_up)
                if given_up is not None:
                    given_up.cancel()
            case WindowUpdated():
                self._wake(event.stream_id)
            case RemoteSettingsChanged():
                self.output.wake()
            case PingAckReceived(ping_data=data) if data == _LEAVING:
                self.h2.refusing = True
                self._write_goaway(self.h2.highest_inbound_stream_id)
                self.server.informed.set()

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

    def _begin(self, event: RequestReceived) -> None:
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
        if (call.feed(data, size) or event.stream_ended) and len(data) < WORTH:
            self._budget.left += 1

    def _count_reset(self, stream_id: int, call: Call | None) -> None:
        """Count premature resets (CVE-2023-44487, CVE-2025-8671).

        A stream without a call was malformed, or was reset in the same data that opened it.
        """
        if call is None or self.loop.time() - call.began < _PREMATURE:
            self._premature += 1
        if self._premature > _MAX_PREMATURE:
            self._calm(stream_id)

    def _calm(self, last_stream_id: int | None = None) -> None:
        """Close the connection of a flooding client with ENHANCE_YOUR_CALM."""
        log.warning("a client floods its connection", peer=self.peer)
        frame = GoAwayFrame(0)
        frame.last_stream_id = last_stream_id or self.h2.highest_inbound_stream_id
        frame.error_code = ErrorCodes.ENHANCE_YOUR_CALM
        self._hang_up(self.h2.data_to_send() + frame.serialize(), linger=_LINGER)

    def _broken(self, error: Exception) -> None:
        if isinstance(error, ProtocolError):
            log.info("a client broke HTTP/2's rules", peer=self.peer, reason=str(error))
            self._hang_up(self.h2.fail(error))
        else:
            log.error("a client's bytes could not be read", peer=self.peer, exc_info=error)
            self._hang_up(b"")

    def _hold(self, *, more: bool) -> None:
        """Pause the transport if ``more`` data is buffered, else resume it."""
        self._holding = more
        if self._transport is None or self._transport.is_closing():
            return
        if more:
            self._transport.pause_reading()
        else:
            self.keepalive.heard_at = self.loop.time()
            self._transport.resume_reading()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > _MAX_DROPPED:
            self.abort()

    def _hang_up(self, last_words: bytes, *, linger: float = 0.0) -> None:
        """Send ``last_words`` and close the connection, or abort it after ``linger`` seconds."""
        transport, output = self._transport, self.output
        if self.lost or transport is None or transport.is_closing():
            return
        if last_words:
            output.unsent.append(last_words)
        if output.unsent:
            output.flush()
        self._lose()
        patience = self.server.keepalive_timeout
        if linger and not output.paused:
            if transport.can_write_eof():  # not with TLS
                transport.write_eof()
            if self._holding:
                self._hold(more=False)
            patience = min(patience, linger)
        else:
            transport.close()
        # Closing waits until the client has read all data.
        self._end_timer = self.loop.call_later(patience, self.abort)

    def _lose(self) -> None:
        """Stop sending and reading, and cancel all calls."""
        self.lost = self.output.closed = True
        self.h2.release()
        self.keepalive.stop()
        if self._end_timer is not None:
            self._end_timer.cancel()
        if self._cut_some():
            self.server.turns.wait(self)

    def _cut_some(self) -> bool:
        """Cancel some calls of a lost connection, and return whether more are left."""
        granted = self.server.endings.take(min(_CUTS, len(self.calls)))
        for call in tuple(islice(self.calls.values(), granted)):
            call.cancel()
        return bool(self.calls)

    def _ping(self) -> None:
        if not self._greeted:
            self.abort()
            return
        self.h2.ping(_SILENT)
        self.output.flush_h2()

    def _dead(self, silent: float) -> None:
        log.info("a client is gone", peer=self.peer, silent=round(silent))
        self.abort()

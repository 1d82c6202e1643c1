"""One HTTP/2 connection of a client: h2's state, the socket, and the calls on it.

What goes out gathers in a list and leaves in one write at the end of the event loop's turn:
the tokens of all streams of a connection that came in one frame of a rank share a system call.
"""

import asyncio
import struct
from typing import TYPE_CHECKING, cast

import structlog
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import GoAwayFrame

from serving.rpc.call import Call
from serving.rpc.http2 import Http2
from serving.rpc.wire import Headers

if TYPE_CHECKING:
    from serving.rpc.server import Server

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MAX_UNSENT = 2**23
"""Bytes that may come on top where a client does not read. Its calls stop at the transport's own
high water; these are answers to pings and settings, with which it could fill the memory."""
_CROWD = 512
"""Frames that wait for the end of the event loop's turn; who writes more of them lets it end."""
_STALL = 1.0
"""Seconds; so late, a timer says that the event loop stood still."""
_PREMATURE = 1.0
"""Seconds; a call that is cancelled sooner is one of those that a flood is made of."""
_MAX_PREMATURE = 1000
"""Of them on a connection, in excess of one for each call that went well."""

_H1_TEXT = b"This port speaks gRPC, over HTTP/2; REST has a port of its own.\n"
_H1_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_H1_TEXT), _H1_TEXT)
)
_H1_METHODS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ")

_data_head = struct.Struct(">HBBBI").pack
"""Of a DATA frame: 24 bits of length, type 0, flags 0, stream. RFC 9113, section 4.1."""


class Connection(asyncio.Protocol):
    """Serves one connection."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.loop = asyncio.get_running_loop()
        self.calls: dict[int, Call] = {}
        self.peer = ""
        self.lost = False
        # Twice: a call over the limit is refused for itself, with words.
        self._h2 = Http2(2 * server.max_metadata_bytes)
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._paused = False
        self._on_top = 0
        """Bytes that were written since."""
        self._waiting: dict[Call, None] = {}
        """In the order in which they get room."""
        self._greeted = False
        self._heard_at = self.loop.time()
        self._pinged = False
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._premature = 0

    # -- asyncio's protocol -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the client to speak."""
        self._transport = cast("asyncio.Transport", transport)
        self.peer = _peer_of(transport.get_extra_info("peername"))
        self.server.connected(self)
        self._look_in(self.server.keepalive_time)
        if self.server.stopping:
            self.close()  # its handshake has outlasted the listening socket

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""
        self._heard_at = self.loop.time()
        self._pinged = False
        if not self._greeted:
            self._greeted = True
            if data.startswith(_H1_METHODS):
                self._hang_up(_H1_ANSWER)
                return
            self._h2.greet()
        try:
            events = self._h2.receive_data(data)
        except ProtocolError as error:
            log.info("a client broke HTTP/2's rules", peer=self.peer, reason=str(error))
            self._hang_up(self._h2.data_to_send())
            return
        except Exception:
            log.exception("a client's bytes could not be read", peer=self.peer)
            self._hang_up(b"")
            return
        for event in events:
            if self.lost:
                return
            self._take_in(event)
        self.flush_h2()

    def pause_writing(self) -> None:
        """Stop calls from writing: the client does not read fast enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """Let them go on."""
        self._paused = False
        self._on_top = 0
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all calls."""
        del exc
        self._lose()
        self.server.disconnected(self)

    # -- what calls send ----------------------------------------------------------------

    def send_headers(self, stream_id: int, headers: Headers, *, end: bool = False) -> None:
        """Send headers or trailers; nothing if the stream is gone."""
        stream = self._h2.streams.get(stream_id)
        if not self.lost and stream is not None and not stream.closed:
            self._h2.send_headers(stream_id, headers, end_stream=end)
            self.flush_h2()

    def try_send(self, call: Call, payload: bytes) -> bool:
        """Send all of the payload in one frame, if it may go now.

        This is the way of nearly every token. The state of a stream between headers and
        trailers does not change by DATA, so h2 only has to know how much went out.
        """
        h2, stream, size = self._h2, call.stream, len(payload)
        if (
            self._paused
            or size > h2.outbound_flow_control_window
            or size > stream.outbound_flow_control_window
            or size > h2.max_outbound_frame_size
        ):
            return False
        h2.outbound_flow_control_window -= size
        stream.outbound_flow_control_window -= size
        self._write(_data_head(size >> 8, size & 0xFF, 0, 0, stream.stream_id) + payload)
        return True

    def room_for(self, call: Call) -> int:
        """Return how many bytes of a message may go now, in one frame."""
        if self._paused:
            return 0
        h2 = self._h2
        return min(
            h2.outbound_flow_control_window,
            call.stream.outbound_flow_control_window,
            h2.max_outbound_frame_size,
        )

    def wait_for_room(self, call: Call) -> None:
        """Call ``call.has_room`` when there may be room, until ``had_room``."""
        self._waiting.setdefault(call)

    def had_room(self, call: Call) -> None:
        """Let others go first from now on."""
        self._waiting.pop(call, None)

    @property
    def crowded(self) -> bool:
        """Whether a writer should let the event loop's turn end."""
        return len(self._unsent) > _CROWD

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """End a stream; nothing if it is gone."""
        stream = self._h2.streams.get(stream_id)
        if not self.lost and stream is not None and not stream.closed:
            self._h2.reset_stream(stream_id, code)
            self.flush_h2()

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let the client send as many bytes more."""
        if size and not self.lost:
            self._h2.acknowledge_received_data(size, stream_id)
            self.flush_h2()

    def forget(self, call: Call) -> None:
        """Drop a call that is over."""
        if self.calls.pop(call.stream_id, None) is not None and self._premature:
            self._premature -= call.went_well
        self._waiting.pop(call, None)

    def flush_h2(self) -> None:
        """Pass on what h2 wants to send."""
        if data := self._h2.data_to_send():
            self._write(data)

    # -- the server's end ---------------------------------------------------------------

    def go_away(self) -> None:
        """Ask the client to take its next calls elsewhere; those that run go on."""
        if not self._greeted:
            self.close()
            return
        frame = GoAwayFrame(0)
        frame.last_stream_id = 2**31 - 1
        frame.error_code = ErrorCodes.NO_ERROR
        self._write(frame.serialize())

    def close(self) -> None:
        """Send what is still to be sent, and hang up."""
        self._hang_up(b"")

    def abort(self) -> None:
        """Hang up at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- inside -------------------------------------------------------------------------

    def _take_in(self, event: Event) -> None:
        # Of the others h2 has done what there is to do.
        match event:
            case RequestReceived():
                self._begin(event)
            case DataReceived():
                self._feed(event)
            case StreamEnded():
                if (ended := self.calls.get(event.stream_id)) is not None:
                    ended.no_more()
            case StreamReset():
                given_up = self.calls.get(event.stream_id)
                self._count_reset(event.stream_id, given_up)
                if given_up is not None:
                    given_up.cut()
            case WindowUpdated():
                self._wake(event.stream_id)
            case RemoteSettingsChanged():
                self._wake()

    def _begin(self, event: RequestReceived) -> None:
        assert event.stream_id is not None
        stream = self._h2.streams.get(event.stream_id)
        if stream is None:
            return  # cancelled, and forgotten, by what came with it
        call = Call(self, stream, event.headers)
        self.calls[event.stream_id] = call
        call.start()

    def _feed(self, event: DataReceived) -> None:
        assert event.stream_id is not None
        size = event.flow_controlled_length or 0
        call = self.calls.get(event.stream_id)
        if call is None:
            self.acknowledge(event.stream_id, size)
        else:
            call.feed(event.data or b"", size)

    def _count_reset(self, stream_id: int, call: Call | None) -> None:
        """Notice a client that begins calls only to end them (CVE-2023-44487, CVE-2025-8671).

        Those without a call were over in the bytes that began them, or malformed.
        """
        if call is None or self.loop.time() - call.began < _PREMATURE:
            self._premature += 1
        if self._premature > _MAX_PREMATURE:
            log.warning("a client only begins calls and cancels them", peer=self.peer)
            frame = GoAwayFrame(0)
            frame.last_stream_id = stream_id
            frame.error_code = ErrorCodes.ENHANCE_YOUR_CALM
            self._hang_up(frame.serialize())

    def _wake(self, stream_id: int | None = 0) -> None:
        """Let calls look again whether they may send."""
        if not self._waiting:
            return
        if not stream_id:
            for call in tuple(self._waiting):
                call.has_room()
            return
        blocked = self.calls.get(stream_id)
        if blocked is not None and blocked in self._waiting:
            blocked.has_room()

    def _write(self, data: bytes) -> None:
        if not self._unsent:
            self.loop.call_soon(self._flush)
        self._unsent.append(data)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if not unsent or self._transport is None or self._transport.is_closing():
            return
        data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
        if self._paused:
            self._on_top += len(data)
            if self._on_top > _MAX_UNSENT:
                log.info("a client does not read what it is sent", peer=self.peer)
                self._transport.abort()
                return
        self._transport.write(data)

    def _hang_up(self, last_words: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            if last_words:
                self._unsent.append(last_words)
            if self._unsent:
                self._flush()
            self._transport.close()
            self._lose()
            # Closing waits for what the client has not read.
            self._timer = self.loop.call_later(self.server.keepalive_timeout, self.abort)

    def _lose(self) -> None:
        """Nothing is sent from now on; end all calls."""
        self.lost = True
        if self._timer is not None:
            self._timer.cancel()
        for call in tuple(self.calls.values()):
            call.cut()

    def _look(self) -> None:
        """Ping a client that is silent; hang up on one that does not answer."""
        server = self.server
        silent = self.loop.time() - self._heard_at
        if not self._greeted:
            self.abort()
            return
        if self.loop.time() - self._due > _STALL:
            # We were busy, not the client silent: what it sent may lie in the socket.
            self._look_in(_STALL)
            return
        if self._pinged and silent >= server.keepalive_time + server.keepalive_timeout:
            log.info("a client is gone", peer=self.peer, silent=round(silent))
            self.abort()
            return
        if silent >= server.keepalive_time and not self._pinged:
            self._pinged = True
            self._h2.ping(b"are you?")
            self.flush_h2()
        due = server.keepalive_time + (server.keepalive_timeout if self._pinged else 0) - silent
        self._look_in(max(due, 0.01))

    def _look_in(self, seconds: float) -> None:
        self._due = self.loop.time() + seconds
        self._timer = self.loop.call_later(seconds, self._look)


def _peer_of(address: object) -> str:
    """Return an address as gRPC writes it."""
    if not isinstance(address, tuple):
        return "unknown"
    host, port = str(address[0]), address[1]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

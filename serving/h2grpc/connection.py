"""One HTTP/2 connection of a client: h2's state, the socket, and the calls on it.

What comes in is read frame by frame, a slice at a time (``turns``), and paid for (``budget``).
What goes out gathers in a list and leaves in one write at the end of the event loop's turn:
the tokens of all streams of a connection that came in one frame of a rank share a system call.
"""

import asyncio
import struct
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, cast

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

from serving.h2grpc.answer import Answer
from serving.h2grpc.budget import UNSERVED, WORTH, Budget
from serving.h2grpc.call import Call
from serving.h2grpc.http2 import Http2
from serving.h2grpc.peer import address_of, auth_context_of
from serving.h2grpc.wire import Headers

if TYPE_CHECKING:
    from serving.h2grpc.server import Server

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MAX_UNSENT = 2**23
"""Bytes that may come on top where a client does not read. Its calls stop at the transport's own
high water; these are answers to pings and settings, with which it could fill the memory."""
_FRAMES = 64
"""That are read at a time, however fast."""
_CUTS = 16
"""Calls of a client who is gone that end at a time; their handlers have to clear up."""
_LINGER = 1.0
"""Seconds in which a client who was hung up on for a flood can read why. What it sends until then
is dropped; closing at once would take the reason away from it, too."""
_MAX_DROPPED = 2**24
"""Bytes."""
_MORE_HEADERS = 2**13
"""Bytes of headers over the limit with which a call is refused for itself, with words."""
_CROWD = 512
"""Frames that wait for the end of the event loop's turn; who writes more of them lets it end."""
_STALL = 1.0
"""Seconds; so late, a timer says that the event loop stood still."""
_PREMATURE = 1.0
"""Seconds; a call that is cancelled sooner is one of those that a flood is made of."""
_MAX_PREMATURE = 1000
"""Of them on a connection, in excess of one for each call that went well."""

_LEAVING = b"goes off"
"""In the PING whose answer says that a client knows of the server's end."""

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
        limit = server.max_metadata_bytes
        self._h2 = Http2(
            min(2 * limit, limit + _MORE_HEADERS),
            max_streams=server.max_streams,
            served=self.calls,
        )
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._paused = False
        self._on_top = 0
        """Bytes that were written since."""
        self._waiting: dict[Answer, None] = {}
        """In the order in which they get room."""
        self._greeted = False
        self._leaving = False
        self._heard_at = self.loop.time()
        self._pinged = False
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._premature = 0
        self._budget = Budget(self._heard_at)
        self._holding = False
        """There is more to read here; the transport reads nothing meanwhile."""
        self._dropped = 0

    # -- asyncio's protocol -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the client to speak."""
        self._transport = cast("asyncio.Transport", transport)
        self.peer = address_of(transport)
        self.server.connected(self)
        self._look_in(self.server.keepalive_time)
        if self.server.stopping:
            self.close()  # its handshake has outlasted the listening socket

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""
        if self.lost:
            self._drop(len(data))
            return
        self._heard_at = self.loop.time()
        self._pinged = False
        if not self._greeted:
            self._greeted = True
            if data.startswith(_H1_METHODS):
                self._hang_up(_H1_ANSWER)
                return
            self._h2.greet()
        try:
            self._h2.incoming_buffer.add_data(data)
        except ProtocolError as error:
            self._broken(error)
            return
        if self.server.turns.arrived(self) and not self._holding and not self.lost:
            self._hold(more=True)

    def read_on(self, until: float) -> bool:
        """Read what came, frame by frame, until the clock shows ``until``; whether there is more.

        A connection that is lost ends some of its calls instead.
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
            return False  # it waits for its calls to end
        self.flush_h2()
        if self._holding and not more:
            self._hold(more=False)
        return more

    def _read_frames(self, until: float) -> bool:
        h2, budget, clock = self._h2, self._budget, self.server.clock
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
                self._take_in(event)
            if self.lost or clock() >= until:
                break
        return True

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

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS says of the client, by gRPC's names."""
        assert self._transport is not None
        return auth_context_of(self._transport)

    # -- what calls send ----------------------------------------------------------------

    def send_headers(self, stream_id: int, headers: Headers, *, end: bool = False) -> None:
        """Send headers or trailers; nothing if the stream is gone."""
        stream = self._h2.streams.get(stream_id)
        if not self.lost and stream is not None and not stream.closed:
            self._h2.send_headers(stream_id, headers, end_stream=end)
            self.flush_h2()

    def try_send(self, call: Answer, payload: bytes) -> bool:
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
        self._budget.messages += 1
        self._write(_data_head(size >> 8, size & 0xFF, 0, 0, stream.stream_id) + payload)
        return True

    def room_for(self, call: Answer) -> int:
        """Return how many bytes of a message may go now, in one frame."""
        if self._paused:
            return 0
        h2 = self._h2
        return min(
            h2.outbound_flow_control_window,
            call.stream.outbound_flow_control_window,
            h2.max_outbound_frame_size,
        )

    def wait_for_room(self, call: Answer) -> None:
        """Call ``call.has_room`` when there may be room, until ``had_room``."""
        self._waiting.setdefault(call)

    def had_room(self, call: Answer) -> None:
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
        if self.calls.pop(call.stream_id, None) is not None:
            if self._premature:
                self._premature -= call.went_well
            if call.served:
                self._budget.left += 1
            elif not call.cancelled():
                self._budget.left -= UNSERVED
        self._waiting.pop(call, None)

    def flush_h2(self) -> None:
        """Pass on what h2 wants to send."""
        if data := self._h2.data_to_send():
            self._write(data)

    # -- the server's end ---------------------------------------------------------------

    def go_away(self) -> None:
        """Ask the client to take its next calls elsewhere; those that run go on.

        Calls that it has begun before it knows are served: they are here before its answer to the
        PING. Later ones are refused as never seen, so that clients try them elsewhere by
        themselves (RFC 9113, section 6.8).
        """
        if not self._greeted:
            self.close()
            return
        if not self._leaving:
            self._leaving = True
            self._write_goaway(2**31 - 1)
            self._h2.ping(_LEAVING)
            self.flush_h2()

    @property
    def refusing(self) -> bool:
        """Whether the client knows that it is to go, and no call of it is on the way."""
        return self._h2.refusing or not self._leaving

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
            case PingAckReceived(ping_data=data) if data == _LEAVING:
                self._h2.refusing = True
                self._write_goaway(self._h2.highest_inbound_stream_id)
                self.server.told.set()

    def _write_goaway(self, last_stream_id: int) -> None:
        frame = GoAwayFrame(0)
        frame.last_stream_id = last_stream_id
        frame.error_code = ErrorCodes.NO_ERROR
        self._write(frame.serialize())

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
            return
        data = event.data or b""
        if (call.feed(data, size) or event.stream_ended) and len(data) < WORTH:
            self._budget.left += 1

    def _count_reset(self, stream_id: int, call: Call | None) -> None:
        """Notice a client that begins calls only to end them (CVE-2023-44487, CVE-2025-8671).

        Those without a call were over in the bytes that began them, or malformed.
        """
        if call is None or self.loop.time() - call.began < _PREMATURE:
            self._premature += 1
        if self._premature > _MAX_PREMATURE:
            self._calm(stream_id)

    def _calm(self, last_stream_id: int | None = None) -> None:
        """Hang up on a client that keeps the server busy, and say so."""
        log.warning("a client floods its connection", peer=self.peer)
        frame = GoAwayFrame(0)
        frame.last_stream_id = last_stream_id or self._h2.highest_inbound_stream_id
        frame.error_code = ErrorCodes.ENHANCE_YOUR_CALM
        self._hang_up(self._h2.data_to_send() + frame.serialize(), linger=_LINGER)

    def _broken(self, error: Exception) -> None:
        if isinstance(error, ProtocolError):
            log.info("a client broke HTTP/2's rules", peer=self.peer, reason=str(error))
            self._hang_up(self._h2.fail(error))
        else:
            log.error("a client's bytes could not be read", peer=self.peer, exc_info=error)
            self._hang_up(b"")

    def _hold(self, more: bool) -> None:  # noqa: FBT001
        """Read nothing from the socket while there is ``more`` to read here."""
        self._holding = more
        if self._transport is None or self._transport.is_closing():
            return
        if more:
            self._transport.pause_reading()
        else:
            self._heard_at = self.loop.time()
            self._transport.resume_reading()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > _MAX_DROPPED:
            self.abort()

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
        if not unsent or self.lost or self._transport is None or self._transport.is_closing():
            return
        data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
        if self._paused:
            self._on_top += len(data)
            if self._on_top > _MAX_UNSENT:
                log.info("a client does not read what it is sent", peer=self.peer)
                self._transport.abort()
                return
        self._transport.write(data)

    def _hang_up(self, last_words: bytes, *, linger: float = 0.0) -> None:
        """Send the last words and close; with ``linger``, some seconds after what was sent."""
        transport = self._transport
        if self.lost or transport is None or transport.is_closing():
            return
        if last_words:
            self._unsent.append(last_words)
        if self._unsent:
            self._flush()
        self._lose()
        patience = self.server.keepalive_timeout
        if linger and not self._paused:
            if transport.can_write_eof():  # not with TLS
                transport.write_eof()
            if self._holding:
                self._hold(more=False)
            patience = min(patience, linger)
        else:
            transport.close()
        # Closing waits for what the client has not read.
        self._timer = self.loop.call_later(patience, self.abort)

    def _lose(self) -> None:
        """Nothing is sent or read from now on; end all calls."""
        self.lost = True
        self._h2.release()
        if self._timer is not None:
            self._timer.cancel()
        if self._cut_some():
            self.server.turns.wait(self)

    def _cut_some(self) -> bool:
        """End some calls of a client that is gone; whether there are more."""
        for call in tuple(islice(self.calls.values(), _CUTS)):
            call.cut()
        return bool(self.calls)

    def _look(self) -> None:
        """Ping a client that is silent; hang up on one that does not answer."""
        server = self.server
        silent = self.loop.time() - self._heard_at
        if not self._greeted:
            self.abort()
            return
        if self.loop.time() - self._due > _STALL or self._holding:
            # We are busy, not the client silent: what it sent may lie in the socket.
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

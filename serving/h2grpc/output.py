"""The sending side of a connection: one write per iteration of the event loop for all frames.

Tokens that a rank sends in one frame are written in one system call per connection, for all its
streams.
"""

import asyncio
import struct

import structlog
from h2.errors import ErrorCodes

from serving.h2grpc.budget import Budget
from serving.h2grpc.host import Stream
from serving.h2grpc.http2 import Http2
from serving.h2grpc.wire import Headers

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

MAX_UNSENT = 2**23
"""Maximum size of frames written while the client does not read, bytes. Calls stop at the
transport's high-water mark; without this limit, answers to PING and SETTINGS could exhaust
memory."""
_CONGESTED = 512
"""Number of frames per event-loop iteration above which writers should yield to the loop."""

_data_head = struct.Struct(">HBBBI").pack
"""Header of a DATA frame: length (24 bits), type 0, flags 0, stream. RFC 9113, section 4.1."""


class Output:
    """The sending side of one connection."""

    def __init__(self, h2: Http2, budget: Budget) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.closed = False
        """Whether sending has stopped."""
        self.paused = False
        """Whether the transport's buffer is full because the client does not read."""
        self.unsent: list[bytes] = []
        """Frames of the current event-loop iteration."""
        self.waiting: dict[Stream, None] = {}
        """Calls waiting for flow control, in the order in which they are woken."""
        self._h2 = h2
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._excess = 0
        """Number of bytes written while ``paused``."""

    @property
    def congested(self) -> bool:
        """Whether writers should yield to the event loop."""
        return len(self.unsent) > _CONGESTED

    def write(self, data: bytes) -> None:
        """Queue frames; they are sent in the next iteration of the event loop."""
        if not self.unsent:
            self._loop.call_soon(self.flush)
        self.unsent.append(data)

    def flush(self) -> None:
        """Write the queued frames to the transport."""
        unsent, self.unsent = self.unsent, []
        transport = self.transport
        if not unsent or self.closed or transport is None or transport.is_closing():
            return
        data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
        if self.paused:
            self._excess += len(data)
            if self._excess > MAX_UNSENT:
                log.info("connection closed: the client does not read", peer=self.peer)
                transport.abort()
                return
        transport.write(data)

    def resume(self) -> None:
        """Resume sending, because the client is reading again."""
        self.paused = False
        self._excess = 0
        self.wake()

    def wake(self) -> None:
        """Let all waiting calls retry sending."""
        for call in tuple(self.waiting):
            call.retry_send()

    def wake_one(self, call: Stream | None) -> None:
        """Let one call retry sending, if it is waiting."""
        if call is not None and call in self.waiting:
            call.retry_send()

    def flush_h2(self) -> None:
        """Send the frames that h2 has queued."""
        if data := self._h2.data_to_send():
            self.write(data)

    def send_headers(self, stream_id: int, headers: Headers, *, end: bool = False) -> None:
        """Send headers or trailers; no-op if the stream is closed."""
        stream = self._h2.streams.get(stream_id)
        if not self.closed and stream is not None and not stream.closed:
            self._h2.send_headers(stream_id, headers, end_stream=end)
            self.flush_h2()

    def try_send(self, call: Stream, payload: bytes) -> bool:
        """Send the whole payload in one frame and return True, if flow control allows it now.

        Nearly all tokens take this path. DATA between headers and trailers does not change the
        state of a stream, so only h2's flow-control windows are updated.
        """
        h2, stream, size = self._h2, call.stream, len(payload)
        if (
            self.paused
            or size > h2.outbound_flow_control_window
            or size > stream.outbound_flow_control_window
            or size > h2.max_outbound_frame_size
        ):
            return False
        h2.outbound_flow_control_window -= size
        stream.outbound_flow_control_window -= size
        self._budget.messages += 1
        head = _data_head(size >> 8, size & 0xFF, 0, 0, stream.stream_id)
        self.write(head + payload)
        return True

    def sendable_bytes(self, call: Stream) -> int:
        """Return the number of bytes that can be sent now in one frame."""
        if self.paused:
            return 0
        h2 = self._h2
        room: int = min(
            h2.outbound_flow_control_window,
            call.stream.outbound_flow_control_window,
            h2.max_outbound_frame_size,
        )
        return room

    def await_room(self, call: Stream) -> None:
        """Call ``call.retry_send`` when the window may have grown, until ``stop_awaiting_room``."""
        self.waiting.setdefault(call)

    def stop_awaiting_room(self, call: Stream) -> None:
        """Remove the call from the queue of waiting calls; ``await_room`` adds it at the end."""
        self.waiting.pop(call, None)

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Reset a stream; no-op if it is closed."""
        stream = self._h2.streams.get(stream_id)
        if not self.closed and stream is not None and not stream.closed:
            self._h2.reset_stream(stream_id, code)
            self.flush_h2()

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Return ``size`` bytes to the client's flow-control window."""
        if size and not self.closed:
            self._h2.acknowledge_received_data(size, stream_id)
            self.flush_h2()

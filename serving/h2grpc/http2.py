"""h2's connection, adapted to this server.

Stream errors do not end the connection, more resources are bounded, and many open streams cost
less. Each class documents how it differs from h2. Section numbers refer to RFC 9113.
"""

import contextlib
from collections.abc import Iterable, Sized
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import (
    InvalidBodyLengthError,
    ProtocolError,
    StreamClosedError,
    StreamIDTooLowError,
)
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream, StreamClosedBy
from hpack import Decoder, Encoder, HeaderTuple
from hpack.exceptions import HPACKDecodingError, HPACKError, OversizedHeaderListError
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from serving.h2grpc.frames import Frames

_STREAM_WINDOW = 2**18
_CONNECTION_WINDOW = 2**22
"""Flow-control windows for clients, per stream and per connection, bytes."""
MAX_STREAMS = 2**10
"""Maximum number of open streams per connection; clients queue further calls."""
_MAX_RESETS = 2**12
"""Maximum number of streams remembered as reset by this server."""
_MAX_SIZE_UPDATES = 2
"""Maximum number of size updates of the header table per block (RFC 7541, section 4.2)."""
_MAX_SETTINGS: dict[int, int] = {
    SettingCodes.HEADER_TABLE_SIZE: 2**12,
    SettingCodes.MAX_FRAME_SIZE: 2**14,
}
"""Upper bounds on client settings that cost this server memory and search time."""
_KNOWN = frozenset(SettingCodes)
_DEFAULT_WINDOW = 65_535

_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding=None,
    # Only received headers need checks.
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class _CompressionError(ProtocolError):
    """A header block cannot be decoded (section 4.3). h2 uses PROTOCOL_ERROR."""

    error_code = ErrorCodes.COMPRESSION_ERROR


class _Decoder(Decoder):
    """hpack's decoder, which also strips the white space around values that gRPC clients may send.

    The number of table size updates is limited: a frame can contain 16,000 of them.
    """

    _updates = 0

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:  # noqa: FBT001, FBT002
        self._updates = 0
        try:
            headers = super().decode(data, raw)
        except OversizedHeaderListError:
            raise
        except HPACKError as error:
            raise _CompressionError(f"cannot decode the header block: {error}") from error
        return [_stripped(each) for each in headers]

    def _update_encoding_context(self, data: bytes | memoryview) -> int:
        self._updates += 1
        if self._updates > _MAX_SIZE_UPDATES:
            raise HPACKDecodingError("too many dynamic table size updates in one header block")
        return super()._update_encoding_context(data)


class _Encoder(Encoder):
    """hpack's encoder without Huffman coding, whose time is quadratic in a value's length."""

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:  # noqa: FBT001, FBT002
        del huffman
        return super().encode(headers, huffman=False)


class Http2(H2Connection):
    """The protocol state of one connection."""

    incoming_buffer: Frames
    _last_count = 0

    def __init__(
        self, max_headers: int, *, max_streams: int = MAX_STREAMS, open_streams: Sized = ()
    ) -> None:
        """Initialize the state.

        Args:
            max_headers: Maximum size of a header list and of its encoded block, bytes.
            max_streams: Maximum number of open streams; further ones are refused.
            open_streams: Live collection with one item per open stream.
        """
        super().__init__(_CONFIGURATION)
        self.decoder = _Decoder(max_headers)
        self.encoder = _Encoder()
        self.incoming_buffer = Frames(max_headers)
        self.incoming_buffer.max_frame_size = self.max_inbound_frame_size
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: max_headers,
            },
        )
        self._max_streams = max_streams
        self.refusing = False
        """Whether all new streams are refused."""
        self._live_streams = open_streams
        self._resets: dict[int, None] = {}
        """Streams for which RST_STREAM has been sent; it is sent only once."""

    def greet(self) -> None:
        """Queue SETTINGS and the WINDOW_UPDATE of the connection."""
        self.initiate_connection()
        self.increment_flow_control_window(_CONNECTION_WINDOW - _DEFAULT_WINDOW)

    def release(self) -> None:
        """Release the resources of a closed connection.

        h2's table of bound methods is a reference cycle. Unless it is broken, the memory of each
        connection is held until the garbage collector runs.
        """
        self._frame_dispatch_table = {}
        self._header_frames = []
        self.incoming_buffer.release()
        self._data_to_send.clear()
        self._closed_streams.clear()
        self._resets.clear()

    receive = H2Connection._receive_frame  # noqa: SLF001  saves a call per frame
    """Process one frame of ``incoming_buffer``; raises ProtocolError for connection errors."""

    def fail(self, error: ProtocolError) -> bytes:
        """Return the pending bytes and the GOAWAY for a client that caused a connection error."""
        self._terminate_connection(error.error_code)
        return self.data_to_send()

    @property
    def open_inbound_streams(self) -> int:
        """Number of open streams; occasionally removes closed ones.

        h2 iterates over all streams for each new one.
        """
        if len(self.streams) > 2 * self._last_count + 64:
            self._last_count = super().open_inbound_streams
        return len(self._live_streams)

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[Event]]:
        """Process HEADERS; reset the stream if they are malformed (section 8.1.1).

        Streams above the maximum number are reset too (section 5.1.2). In both cases h2 ends the
        connection.
        """
        full = self.refusing or len(self._live_streams) >= self._max_streams
        before = self.streams.get(frame.stream_id)
        if full and before is None:
            return self._refuse(frame), []
        expected = None if before is None else before._expected_content_length  # noqa: SLF001
        try:
            answer = super()._receive_headers_frame(frame)
        except (StreamClosedError, StreamIDTooLowError) as error:
            if self._stream_is_closed_by_reset(error.stream_id) and not self._mark_reset(frame):
                return [], []
            raise
        except ProtocolError as error:
            stream = self.streams.get(frame.stream_id)
            # Subclasses and errors with a cause (decoder, state) are connection errors, except
            # those of int() for a content-length of thousands of digits.
            is_malformed = type(error.__cause__) in {type(None), ValueError}
            if (
                type(error) is not ProtocolError
                or not is_malformed
                or not stream
                or not stream.open
            ):
                raise
            return self._reset_malformed(frame)
        if before is not None:
            # h2 replaces the content-length by that of the trailers, which have none.
            before._expected_content_length = expected  # noqa: SLF001
        if "END_STREAM" in frame.flags and not _matches_content_length(
            self.streams, frame.stream_id
        ):
            return self._reset_malformed(frame)
        return answer

    def _receive_data_frame(self, frame: DataFrame) -> tuple[list[Frame], list[Event]]:
        """Process DATA; reset the stream if content-length is wrong (section 8.1.1)."""
        try:
            return super()._receive_data_frame(frame)
        except InvalidBodyLengthError:
            frames, events = self._reset_malformed(frame)
            manager = self._inbound_flow_control_window_manager
            if more := manager.process_bytes(frame.flow_controlled_length):
                update = WindowUpdateFrame(0)
                update.window_increment = more
                frames.append(update)
            return frames, events

    def _receive_priority_frame(
        self, frame: HeadersFrame | PriorityFrame
    ) -> tuple[list[Frame], list[Event]]:
        """Process PRIORITY; reset the stream on errors (sections 5.3 and 6.3)."""
        if isinstance(frame, PriorityFrame):
            if not frame.body_len:
                return self._reset_malformed(frame, ErrorCodes.FRAME_SIZE_ERROR)
            if frame.depends_on == frame.stream_id:
                return self._reset_malformed(frame)
        return super()._receive_priority_frame(frame)

    def _receive_window_update_frame(
        self, frame: WindowUpdateFrame
    ) -> tuple[list[Frame], list[Event]]:
        """Process WINDOW_UPDATE; reset a stream with an increment of 0 (section 6.9)."""
        if not frame.window_increment:
            with contextlib.suppress(StreamClosedError):
                self._get_stream_by_id(frame.stream_id)  # also raises for an idle stream
            return self._reset_malformed(frame)
        return super()._receive_window_update_frame(frame)

    def _reset_malformed(
        self, frame: Frame, code: ErrorCodes = ErrorCodes.PROTOCOL_ERROR
    ) -> tuple[list[Frame], list[Event]]:
        """Reset the stream of a malformed frame; no-op if it is closed."""
        stream = self.streams.get(frame.stream_id)
        if stream is None or stream.closed:
            return [], []
        self._mark_reset(frame)
        reset = StreamReset(stream_id=frame.stream_id, error_code=code, remote_reset=False)
        return stream.reset_stream(code), [reset]

    def _refuse(self, frame: HeadersFrame) -> list[Frame]:
        """Refuse a new stream; its headers are decoded to keep the header table in sync."""
        try:
            self.decoder.decode(frame.data, raw=True)
        except HPACKError as error:
            raise ProtocolError("cannot decode the header block") from error
        stream_id = frame.stream_id
        if stream_id <= self.highest_inbound_stream_id:
            raise StreamIDTooLowError(stream_id, self.highest_inbound_stream_id)
        if stream_id % 2 == 0:
            raise ProtocolError("stream IDs of a client must be odd")
        self.highest_inbound_stream_id = stream_id
        self._closed_streams[stream_id] = StreamClosedBy.SEND_RST_STREAM
        self._mark_reset(frame)
        reset = RstStreamFrame(stream_id)
        reset.error_code = ErrorCodes.REFUSED_STREAM
        return [reset]

    def reset_stream(self, stream_id: int, error_code: ErrorCodes | int = 0) -> None:
        """Reset a stream and remember it as reset."""
        super().reset_stream(stream_id, error_code)
        self._resets[stream_id] = None

    def _handle_data_on_closed_stream(
        self, events: list[Event], exc: StreamClosedError, frame: DataFrame
    ) -> tuple[list[Frame], list[Event]]:
        """Send RST_STREAM only once per stream; h2 sends it for each frame in flight."""
        frames, events = super()._handle_data_on_closed_stream(events, exc, frame)
        if not self._mark_reset(frame):
            frames = [each for each in frames if not isinstance(each, RstStreamFrame)]
        return frames, events

    def _mark_reset(self, frame: Frame) -> bool:
        """Mark the frame's stream as reset, and return True the first time."""
        if frame.stream_id in self._resets:
            return False
        self._resets[frame.stream_id] = None
        while len(self._resets) > _MAX_RESETS:
            del self._resets[next(iter(self._resets))]
        return True

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        """Ignore GOAWAY, since the client waits for running calls; h2 ends the connection."""
        del frame
        return [], []

    def _receive_settings_frame(self, frame: SettingsFrame) -> tuple[list[Frame], list[Event]]:
        """Process SETTINGS; cap values as in ``_MAX_SETTINGS`` and ignore unknown settings."""
        for code in tuple(frame.settings):
            if code not in _KNOWN:
                del frame.settings[code]
                continue
            self.remote_settings.validate_received_setting(code, frame.settings[code])
            if code in _MAX_SETTINGS:
                frame.settings[code] = min(frame.settings[code], _MAX_SETTINGS[code])
        answer = super()._receive_settings_frame(frame)
        changes = self.encoder.table_size_changes
        if len(changes) > 2:  # noqa: PLR2004  the smallest and the last are sent (RFC 7541, 4.2)
            changes[:] = [min(changes), changes[-1]]
        return answer


def _matches_content_length(streams: dict[int, H2Stream], stream_id: int) -> bool:
    """Return whether the received DATA of a stream matches its content-length, if any."""
    stream = streams.get(stream_id)
    if stream is None or (expected := stream._expected_content_length) is None:  # noqa: SLF001
        return True
    return bool(expected == stream._actual_content_length)  # noqa: SLF001


def _stripped(header: HeaderTuple) -> HeaderTuple:
    name, value = header
    plain = value.strip(b" \t")
    return header if plain == value else header.__class__(name, plain)

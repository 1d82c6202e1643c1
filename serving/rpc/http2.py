"""h2 as this server uses it: milder with a client's faults, bounded, cheaper with many streams.

h2's own rules hold but for what each class here says.
"""

from collections.abc import Iterable, Sized
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import (
    DenialOfServiceError,
    ProtocolError,
    StreamClosedError,
    StreamIDTooLowError,
)
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from h2.stream import StreamClosedBy
from hpack import Decoder, Encoder, HeaderTuple
from hpack.exceptions import HPACKDecodingError, HPACKError
from hyperframe.exceptions import InvalidPaddingError
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

_STREAM_WINDOW = 2**18
_CONNECTION_WINDOW = 2**22
"""Bytes that a client may send ahead of us, a stream and in all."""
MAX_STREAMS = 2**10
"""At once on a connection. Clients make further calls wait, or open another connection."""
_MAX_RESETS = 2**12
"""Streams that are remembered as reset by us."""
_MAX_SIZE_UPDATES = 2
"""Of the table of headers, at the beginning of a block (RFC 7541, section 4.2)."""
_USED: dict[int, int] = {SettingCodes.HEADER_TABLE_SIZE: 2**12, SettingCodes.MAX_FRAME_SIZE: 2**14}
"""Of what a client allows at most so much: it pays with our memory, and our time to search."""
_KNOWN = frozenset(SettingCodes)
_LENGTH_BYTES = 3
_DEFAULT_WINDOW = 65_535

_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding=None,
    # Ours are right; a client's are checked.
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class _Decoder(Decoder):
    """hpack's, but space around a value, which gRPC's clients may send, is taken away.

    And a block may not consist of changes of the table's size: 16,000 fit into a frame.
    """

    _updates = 0

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:  # noqa: FBT001, FBT002
        self._updates = 0
        headers = super().decode(data, raw)
        return [_stripped(each) for each in headers]

    def _update_encoding_context(self, data: bytes | memoryview) -> int:
        self._updates += 1
        if self._updates > _MAX_SIZE_UPDATES:
            raise HPACKDecodingError("too many changes of the table's size")
        return super()._update_encoding_context(data)


class _Encoder(Encoder):
    """hpack's, without Huffman's code: for that it takes time in the square of a value's length."""

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:  # noqa: FBT001, FBT002
        del huffman
        return super().encode(headers, huffman=False)


class _Frames(FrameBuffer):
    """h2's, but a frame that is too long is known by its head; h2 first waits for all of it.

    And a block of headers is bounded as it comes, before it is decoded: that takes time for each
    byte.
    """

    def __init__(self, max_headers: int) -> None:
        super().__init__(server=True)
        self.unread = self._data
        """What has come and is not a frame yet; h2 changes it in place."""
        self._max_headers = max_headers

    def __next__(self) -> Frame:
        if len(head := self._data[:_LENGTH_BYTES]) == _LENGTH_BYTES:
            length = int.from_bytes(head)
            self._validate_frame_length(length)
            begun = self._headers_buffer
            if begun and sum(len(part.data) for part in begun) + length > self._max_headers:
                raise DenialOfServiceError("a block of headers is too long")
        try:
            return super().__next__()
        except InvalidPaddingError as error:
            raise ProtocolError("a frame's padding is longer than the frame") from error


class Http2(H2Connection):
    """One connection's state."""

    incoming_buffer: _Frames
    _counted = 0

    def __init__(
        self, max_headers: int, *, max_streams: int = MAX_STREAMS, served: Sized = ()
    ) -> None:
        """Begin one.

        Args:
            max_headers: bytes of a header list, decoded, and of its block as it comes.
            max_streams: at once; further ones are refused.
            served: has as many items as streams are open.
        """
        super().__init__(_CONFIGURATION)
        self.decoder = _Decoder(max_headers)
        self.encoder = _Encoder()
        self.incoming_buffer = _Frames(max_headers)
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
        self._served = served
        self._resets: dict[int, None] = {}
        """Streams that the client was told are reset: once is enough."""

    def greet(self) -> None:
        """Say what a client may do."""
        self.initiate_connection()
        self.increment_flow_control_window(_CONNECTION_WINDOW - _DEFAULT_WINDOW)

    receive = H2Connection._receive_frame  # noqa: SLF001  a call less for each frame
    """Take in one frame of ``incoming_buffer``; raises ProtocolError where it ends the
    connection."""

    def fail(self, error: ProtocolError) -> bytes:
        """Return what is to be sent before a connection ends that has broken the rules."""
        self._terminate_connection(error.error_code)
        return self.data_to_send()

    @property
    def open_inbound_streams(self) -> int:
        """How many streams are open; now and then, forget those that are closed.

        h2 counts them all for each new one.
        """
        if len(self.streams) > 2 * self._counted + 64:
            self._counted = super().open_inbound_streams
        return len(self._served)

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[Event]]:
        """Malformed headers end their stream (RFC 9113, section 8.1.1); in h2 the connection.

        So does one stream more than there may be (section 5.1.2).
        """
        if len(self._served) >= self._max_streams and frame.stream_id not in self.streams:
            return self._refuse(frame), []
        try:
            return super()._receive_headers_frame(frame)
        except (StreamClosedError, StreamIDTooLowError) as error:
            if self._stream_is_closed_by_reset(error.stream_id) and not self._first(frame):
                return [], []
            raise
        except ProtocolError as error:
            stream = self.streams.get(frame.stream_id)
            # Others, and those with a cause (the decoder, a state), are the connection's.
            if type(error) is not ProtocolError or error.__cause__ or not stream or not stream.open:
                raise
            self._first(frame)
            code = ErrorCodes.PROTOCOL_ERROR
            reset = StreamReset(stream_id=frame.stream_id, error_code=code, remote_reset=False)
            return stream.reset_stream(code), [reset]

    def _refuse(self, frame: HeadersFrame) -> list[Frame]:
        """Refuse a stream; its headers are decoded all the same, for the table's sake."""
        try:
            self.decoder.decode(frame.data, raw=True)
        except HPACKError as error:
            raise ProtocolError("headers cannot be decoded") from error
        stream_id = frame.stream_id
        if stream_id <= self.highest_inbound_stream_id:
            raise StreamIDTooLowError(stream_id, self.highest_inbound_stream_id)
        if stream_id % 2 == 0:
            raise ProtocolError("a client's streams have odd numbers")
        self.highest_inbound_stream_id = stream_id
        self._closed_streams[stream_id] = StreamClosedBy.SEND_RST_STREAM
        self._first(frame)
        reset = RstStreamFrame(stream_id)
        reset.error_code = ErrorCodes.REFUSED_STREAM
        return [reset]

    def reset_stream(self, stream_id: int, error_code: ErrorCodes | int = 0) -> None:
        """End a stream."""
        super().reset_stream(stream_id, error_code)
        self._resets[stream_id] = None

    def _handle_data_on_closed_stream(
        self, events: list[Event], exc: StreamClosedError, frame: DataFrame
    ) -> tuple[list[Frame], list[Event]]:
        """Reset a stream once; h2 does for each frame that was on the way."""
        frames, events = super()._handle_data_on_closed_stream(events, exc, frame)
        if not self._first(frame):
            frames = [each for each in frames if not isinstance(each, RstStreamFrame)]
        return frames, events

    def _first(self, frame: Frame) -> bool:
        """Whether a stream was not reset before; from now on it is."""
        if frame.stream_id in self._resets:
            return False
        self._resets[frame.stream_id] = None
        while len(self._resets) > _MAX_RESETS:
            del self._resets[next(iter(self._resets))]
        return True

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        """A client that takes its next calls elsewhere waits for these; in h2 nothing goes on."""
        del frame
        return [], []

    def _receive_settings_frame(self, frame: SettingsFrame) -> tuple[list[Frame], list[Event]]:
        """Use no more than we need of what the client allows, and keep nothing else."""
        for code in tuple(frame.settings):
            if code not in _KNOWN:
                del frame.settings[code]
                continue
            self.remote_settings.validate_received_setting(code, frame.settings[code])
            if code in _USED:
                frame.settings[code] = min(frame.settings[code], _USED[code])
        answer = super()._receive_settings_frame(frame)
        changes = self.encoder.table_size_changes
        if len(changes) > 2:  # noqa: PLR2004  the smallest and the last are told (RFC 7541, 4.2)
            changes[:] = [min(changes), changes[-1]]
        return answer


def _stripped(header: HeaderTuple) -> HeaderTuple:
    name, value = header
    plain = value.strip(b" \t")
    return header if plain == value else header.__class__(name, plain)

"""h2 as this server uses it: milder with a client's faults, bounded, cheaper with many streams.

h2's own rules hold but for what each class here says.
"""

from collections.abc import Iterable
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import Event, StreamReset
from h2.exceptions import ProtocolError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hpack import Decoder, Encoder, HeaderTuple
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, SettingsFrame

_STREAM_WINDOW = 2**18
_CONNECTION_WINDOW = 2**22
"""Bytes that a client may send ahead of us, a stream and in all."""
_MAX_STREAMS = 2**16
"""At once on a connection; admission bounds the work, and says so in gRPC's words."""
_USED = {SettingCodes.HEADER_TABLE_SIZE: 2**12, SettingCodes.MAX_FRAME_SIZE: 2**14}
"""Of what a client allows at most so much: it pays with our memory, and our time to search."""
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
    """hpack's, but space around a value, which gRPC's clients may send, is taken away."""

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:  # noqa: FBT001, FBT002
        headers = super().decode(data, raw)
        return [_stripped(each) for each in headers]


class _Encoder(Encoder):
    """hpack's, without Huffman's code: for that it takes time in the square of a value's length."""

    def encode(self, headers: Iterable[Any], huffman: bool = False) -> bytes:  # noqa: FBT001, FBT002
        del huffman
        return super().encode(headers, huffman=False)


class _Frames(FrameBuffer):
    """h2's, but a frame that is too long is known by its head; h2 first waits for all of it."""

    def __next__(self) -> Frame:
        if len(head := self._data[:_LENGTH_BYTES]) == _LENGTH_BYTES:
            self._validate_frame_length(int.from_bytes(head))
        return super().__next__()


class Http2(H2Connection):
    """One connection's state."""

    _counted = 0

    def __init__(self, max_headers: int) -> None:
        """Begin one; ``max_headers``: bytes of a header list."""
        super().__init__(_CONFIGURATION)
        self.decoder = _Decoder(max_headers)
        self.encoder = _Encoder()
        self.incoming_buffer = _Frames(server=True)
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW,
                SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: max_headers,
            },
        )

    def greet(self) -> None:
        """Say what a client may do."""
        self.initiate_connection()
        self.increment_flow_control_window(_CONNECTION_WINDOW - _DEFAULT_WINDOW)

    @property
    def open_inbound_streams(self) -> int:
        """How many streams are open at most; the sweep also forgets those that are closed.

        h2 counts them all for each new one.
        """
        known = len(self.streams)
        if known > 2 * self._counted + 64 or known >= _MAX_STREAMS:
            self._counted = super().open_inbound_streams
            known = len(self.streams)
        return known

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[Event]]:
        """Malformed headers end their stream (RFC 9113, section 8.1.1); in h2 the connection."""
        try:
            return super()._receive_headers_frame(frame)
        except ProtocolError as error:
            stream = self.streams.get(frame.stream_id)
            # Others, and those with a cause (the decoder, a state), are the connection's.
            if type(error) is not ProtocolError or error.__cause__ or not stream or not stream.open:
                raise
            code = ErrorCodes.PROTOCOL_ERROR
            reset = StreamReset(stream_id=frame.stream_id, error_code=code, remote_reset=False)
            return stream.reset_stream(code), [reset]

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        """A client that takes its next calls elsewhere waits for these; in h2 nothing goes on."""
        del frame
        return [], []

    def _receive_settings_frame(self, frame: SettingsFrame) -> tuple[list[Frame], list[Event]]:
        """Use no more than we need of what the client allows."""
        for code, most in _USED.items():
            if code in frame.settings:
                frame.settings[code] = min(frame.settings[code], most)
        answer = super()._receive_settings_frame(frame)
        changes = self.encoder.table_size_changes
        if len(changes) > 2:  # noqa: PLR2004  the smallest and the last are told (RFC 7541, 4.2)
            changes[:] = [min(changes), changes[-1]]
        return answer


def _stripped(header: HeaderTuple) -> HeaderTuple:
    name, value = header
    plain = value.strip(b" \t")
    return header if plain == value else header.__class__(name, plain)

"""Splits received data into frames, with checks that h2 and hyperframe lack or get wrong.

Section numbers refer to RFC 9113.
"""

from h2.errors import ErrorCodes
from h2.exceptions import DenialOfServiceError, FrameTooLargeError, ProtocolError
from h2.frame_buffer import FrameBuffer
from hyperframe.exceptions import InvalidPaddingError
from hyperframe.frame import Frame, PriorityFrame, SettingsFrame, WindowUpdateFrame

_HEAD_BYTES = 9
_PRIORITY_BYTES = 5
_WINDOW_UPDATE_BYTES = 4
_ACK = 1
_SPECIAL = frozenset({PriorityFrame.type, SettingsFrame.type, WindowUpdateFrame.type})


class BadFrameSize(ProtocolError):
    """A frame's length does not fit its type (section 4.2)."""

    error_code = ErrorCodes.FRAME_SIZE_ERROR


class Frames(FrameBuffer):
    """h2's frame buffer, which also rejects oversized frames as soon as their header arrives.

    h2 waits for the whole frame. This class also limits the size of a header block while it
    arrives, because decoding time grows with each byte.
    """

    def __init__(self, max_headers: int) -> None:
        super().__init__(server=True)
        self.unread = self._data
        """Received data that has not been parsed; h2 modifies it in place."""
        self._max_headers = max_headers
        self._settings_received = False
        """Whether the client's first frame (SETTINGS) has arrived."""

    def release(self) -> None:
        """Discard the received data."""
        self._data.clear()
        self._headers_buffer.clear()

    def __next__(self) -> Frame:
        head = self._data[:_HEAD_BYTES]
        if len(head) == _HEAD_BYTES:
            length = head[0] << 16 | head[1] << 8 | head[2]
            if length > self.max_frame_size:
                raise FrameTooLargeError(
                    f"frame length {length} exceeds the maximum of {self.max_frame_size} bytes"
                )
            if not self._settings_received:
                self._check_settings(head)
            header_frames = self._headers_buffer
            if header_frames:
                if sum(len(part.data) for part in header_frames) + length > self._max_headers:
                    raise DenialOfServiceError(
                        f"header block exceeds the maximum of {self._max_headers} bytes"
                    )
            elif head[3] in _SPECIAL and (found := self._check_special(head, length)) is not None:
                return found
        try:
            return super().__next__()
        except InvalidPaddingError as error:
            raise ProtocolError("frame padding exceeds the frame length") from error

    def _check_settings(self, head: bytearray) -> None:
        """Check that the first frame is SETTINGS (section 3.4)."""
        if head[3] != SettingsFrame.type or head[4] & _ACK:
            raise ProtocolError("the first frame must be SETTINGS")
        self._settings_received = True

    def _check_special(self, head: bytearray, length: int) -> Frame | None:
        """Return a frame that hyperframe rejects but that is only a stream error, or None.

        Such frames are PRIORITY with a length other than five (section 6.3), returned without a
        body, and WINDOW_UPDATE on a stream with an increment of 0 (section 6.9).

        Raises:
            BadFrameSize: A SETTINGS acknowledgement is not empty (section 6.5).
        """
        stream_id = int.from_bytes(head[5:]) & 2**31 - 1
        if head[3] == SettingsFrame.type:
            if head[4] & _ACK and length:
                raise BadFrameSize("a SETTINGS acknowledgement must be empty")
        elif len(self._data) < _HEAD_BYTES + length or not stream_id:
            self._clear_reserved_bit(head[3], length)
        elif head[3] == PriorityFrame.type:
            if length != _PRIORITY_BYTES:
                return self._consume(PriorityFrame(stream_id), length)
        elif length == _WINDOW_UPDATE_BYTES:
            self._clear_reserved_bit(head[3], length)
            if not any(self._data[_HEAD_BYTES : _HEAD_BYTES + length]):
                return self._consume(WindowUpdateFrame(stream_id), length)
        return None

    def _clear_reserved_bit(self, kind: int, length: int) -> None:
        """Clear the reserved bit of a WINDOW_UPDATE increment (section 6.9)."""
        whole = len(self._data) >= _HEAD_BYTES + length
        if kind == WindowUpdateFrame.type and length == _WINDOW_UPDATE_BYTES and whole:
            self._data[_HEAD_BYTES] &= 0x7F

    def _consume(self, frame: Frame, length: int) -> Frame:
        del self._data[: _HEAD_BYTES + length]
        return frame

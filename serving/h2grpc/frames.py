"""Cuts what a client sends into frames; what h2 and hyperframe let pass, or judge wrongly, is here.

Sections are those of RFC 9113.
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
    """h2's, but a frame that is too long is known by its head; h2 first waits for all of it.

    And a block of headers is bounded as it comes, before it is decoded: that takes time for each
    byte.
    """

    def __init__(self, max_headers: int) -> None:
        super().__init__(server=True)
        self.unread = self._data
        """What has come and is not a frame yet; h2 changes it in place."""
        self._max_headers = max_headers
        self._greeted = False
        """The client's first frame, its SETTINGS, is here."""

    def release(self) -> None:
        """Drop what has come."""
        self._data.clear()
        self._headers_buffer.clear()

    def __next__(self) -> Frame:
        head = self._data[:_HEAD_BYTES]
        if len(head) == _HEAD_BYTES:
            length = head[0] << 16 | head[1] << 8 | head[2]
            if length > self.max_frame_size:
                raise FrameTooLargeError(f"a frame has {length} bytes")
            if not self._greeted:
                self._greet(head)
            begun = self._headers_buffer
            if begun:
                if sum(len(part.data) for part in begun) + length > self._max_headers:
                    raise DenialOfServiceError("a block of headers is too long")
            elif head[3] in _SPECIAL and (found := self._special(head, length)) is not None:
                return found
        try:
            return super().__next__()
        except InvalidPaddingError as error:
            raise ProtocolError("a frame's padding is longer than the frame") from error

    def _greet(self, head: bytearray) -> None:
        """Check that a client begins with its settings (section 3.4)."""
        if head[3] != SettingsFrame.type or head[4] & _ACK:
            raise ProtocolError("the first frame is not SETTINGS")
        self._greeted = True

    def _special(self, head: bytearray, length: int) -> Frame | None:
        """Return a frame that hyperframe does not parse though it ends no connection; else None.

        Such is a PRIORITY of another length than five (section 6.3), here without a body; and
        WINDOW_UPDATE of a stream with an increment of 0 (section 6.9).

        Raises:
            BadFrameSize: an acknowledgement of settings has settings (section 6.5).
        """
        stream_id = int.from_bytes(head[5:]) & 2**31 - 1
        if head[3] == SettingsFrame.type:
            if head[4] & _ACK and length:
                raise BadFrameSize("an acknowledgement of SETTINGS is not empty")
        elif len(self._data) < _HEAD_BYTES + length or not stream_id:
            self._unreserve(head[3], length)
        elif head[3] == PriorityFrame.type:
            if length != _PRIORITY_BYTES:
                return self._taken(PriorityFrame(stream_id), length)
        elif length == _WINDOW_UPDATE_BYTES:
            self._unreserve(head[3], length)
            if not any(self._data[_HEAD_BYTES : _HEAD_BYTES + length]):
                return self._taken(WindowUpdateFrame(stream_id), length)
        return None

    def _unreserve(self, kind: int, length: int) -> None:
        """Clear the bit of an increment that has no meaning (section 6.9)."""
        whole = len(self._data) >= _HEAD_BYTES + length
        if kind == WindowUpdateFrame.type and length == _WINDOW_UPDATE_BYTES and whole:
            self._data[_HEAD_BYTES] &= 0x7F

    def _taken(self, frame: Frame, length: int) -> Frame:
        del self._data[: _HEAD_BYTES + length]
        return frame

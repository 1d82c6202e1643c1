"""gRPC's wire formats over HTTP/2: messages, metadata, timeouts, status messages. No I/O.

Source: gRPC over HTTP2 (grpc/grpc, doc/PROTOCOL-HTTP2.md).
"""

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from serving.h2grpc.compression import BadMessage, LongMessage, decompressed, is_codec

Metadata = tuple[tuple[str, str | bytes], ...]
Headers = list[tuple[bytes, bytes]]

PREFIX_BYTES = 5
"""Size of a message's prefix, bytes: one for the compressed flag, four for the length."""
_prefix = struct.Struct(">BI")

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
# Excludes the space: HTTP/2 forbids it at the end of a value, and some clients disconnect.
_TEXT_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")

_NO_METADATA = frozenset({"te", "content-type", "connection", "host"})
_NOT_SENT = frozenset({"te", "content-type", "content-length"})
"""Keys of a handler's metadata that are ignored, as in grpc.aio: the server sets these headers."""
_PROHIBITED = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
)
"""Headers with which clients reject a response (RFC 9113, section 8.2.2)."""


class WireError(Exception):
    """Received data violates the gRPC protocol; the error text is sent to the peer."""


class MessageTooLarge(WireError):
    """A message exceeds the server's limit."""


class Compressed(bytes):
    """A compressed message."""

    __slots__ = ()


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """Return the message with its prefix."""
    return _prefix.pack(compressed, len(message)) + message


class MessageReader:
    """Splits the contents of DATA frames into messages.

    Buffers at most one incomplete message of at most ``limit`` bytes. Compressed messages are
    decompressed only when read, because flow control bounds only the compressed size of unread
    messages.
    """

    __slots__ = ("_buffer", "_encoding", "_limit")

    def __init__(self, limit: int, encoding: str = "identity") -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._encoding = encoding

    @property
    def empty(self) -> bool:
        """Whether no incomplete message is buffered."""
        return not self._buffer

    @property
    def unfinished(self) -> int:
        """Number of buffered bytes of an incomplete message."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add data and yield completed messages, compressed ones as ``Compressed`` (see ``plain``).

        Raises:
            MessageTooLarge: The length in a prefix exceeds the limit.
            WireError: A message is compressed although the call announced no compression, or its
                first byte is neither 0 nor 1.
        """
        buffer = self._buffer
        buffer += data
        begin = 0
        while len(buffer) - begin >= PREFIX_BYTES:
            compressed, size = _prefix.unpack_from(buffer, begin)
            if size > self._limit:
                raise MessageTooLarge(
                    f"the message has {size} bytes, above the limit of {self._limit}"
                )
            if compressed > 1:
                raise WireError(f"the compressed flag of a message is {compressed}, not 0 or 1")
            if compressed and not is_codec(self._encoding):
                raise WireError("the message is compressed, but grpc-encoding names no compression")
            end = begin + PREFIX_BYTES + size
            if len(buffer) < end:
                break
            message = bytes(buffer[begin + PREFIX_BYTES : end])
            yield Compressed(message) if compressed else message
            begin = end
        del buffer[:begin]

    def plain(self, message: Compressed) -> Iterator[bytes]:
        """Decompress a message, yielding it in parts that take about 0.5 ms each.

        Raises:
            MessageTooLarge: The decompressed message exceeds the limit.
            WireError: The message is corrupt.
        """
        try:
            yield from decompressed(message, self._encoding, self._limit)
        except LongMessage as error:
            raise MessageTooLarge(str(error)) from error
        except BadMessage as error:
            raise WireError(str(error)) from error


def metadata_of(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """Return a client's metadata: all headers that HTTP or gRPC does not reserve.

    Raises:
        WireError: A binary value is not base64.
    """
    found: list[tuple[str, str | bytes]] = []
    for raw_key, raw_value in headers:
        if raw_key.startswith((b":", b"grpc-")):
            continue
        key = raw_key.decode("latin-1")
        if key in _NO_METADATA:
            continue
        if key.endswith("-bin"):
            found.extend((key, _binary(part.strip(), key)) for part in raw_value.split(b","))
        else:
            found.append((key, _text(raw_value)))
    return tuple(found)


def headers_of(metadata: Iterable[tuple[str, str | bytes]]) -> Headers:
    """Return metadata as HTTP/2 headers.

    Raises:
        ValueError: A key or value cannot be sent.
    """
    found: Headers = []
    key: Any  # handlers may pass values of other types
    value: Any
    for key, value in metadata:
        if not isinstance(key, str) or not isinstance(value, str | bytes):
            text = f"metadata must be a str key with a str or bytes value, not {key!r}: {value!r}"
            raise ValueError(text)  # noqa: TRY004  as for all unsendable metadata
        if key in _NOT_SENT:
            continue
        reserved = key in _PROHIBITED or (key.startswith("grpc-") and not key.endswith("-bin"))
        if reserved or not _KEY.fullmatch(key):
            raise ValueError(f"invalid metadata key {key!r}")
        if key.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            found.append((key.encode(), base64.b64encode(raw).rstrip(b"=")))
        else:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if not _VALUE.fullmatch(text):
                raise ValueError(
                    f"the value of metadata key {key} is not printable ASCII: {text!r}"
                )
            found.append((key.encode(), text.encode()))
    return found


def timeout_seconds(value: bytes) -> float:
    """Return the value of ``grpc-timeout`` in seconds.

    Raises:
        WireError: The value is malformed.
    """
    match = _TIMEOUT.fullmatch(value.decode("latin-1"))
    if match is None:
        raise WireError(
            f"invalid grpc-timeout {value.decode('latin-1')!r}: "
            "expected 1 to 8 digits and a unit (H, M, S, m, u, n)"
        )
    return int(match[1]) * _UNITS[match[2]]


def status_text(text: str) -> bytes:
    """Return a status message in the format of ``grpc-message``: UTF-8, percent-encoded."""
    return quote(text, safe=_TEXT_SAFE, errors="replace").encode()


def _binary(value: bytes, key: str) -> bytes:
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise WireError(f"the value of metadata key {key} is not valid base64") from error


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")

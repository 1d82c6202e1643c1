"""gRPC's own layer over HTTP/2: messages, metadata, time-outs, texts of a status. No I/O.

Source of the formats: gRPC over HTTP2 (grpc/grpc, doc/PROTOCOL-HTTP2.md).
"""

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from serving.h2grpc.compression import BadMessage, LongMessage, is_codec, unpacked

Metadata = tuple[tuple[str, str | bytes], ...]
Headers = list[tuple[bytes, bytes]]

PREFIX_BYTES = 5
"""In front of each message: one byte says whether it is compressed, four its length."""
_prefix = struct.Struct(">BI")

_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
# Not the space: at the end of a header's value HTTP/2 forbids it, and some clients then hang up.
_TEXT_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")

_NO_METADATA = frozenset({"te", "content-type", "connection", "host"})


class WireError(Exception):
    """What came is not what gRPC allows; the message is for the peer."""


class MessageTooLarge(WireError):
    """A message is longer than this server takes."""


class Packed(bytes):
    """A message in its compressed form."""

    __slots__ = ()


def framed(message: bytes, *, compressed: bool = False) -> bytes:
    """Return the message with its prefix."""
    return _prefix.pack(compressed, len(message)) + message


class MessageReader:
    """Cuts what comes in DATA frames into messages.

    Holds at most one unfinished message, and that is at most ``limit`` bytes long, also when it
    comes compressed. Such a message is unpacked when it is wanted: of those that wait, flow
    control bounds only what they have as they come.
    """

    __slots__ = ("_buffer", "_encoding", "_limit")

    def __init__(self, limit: int, encoding: str = "identity") -> None:
        self._buffer = bytearray()
        self._limit = limit
        self._encoding = encoding

    @property
    def empty(self) -> bool:
        """Whether nothing unfinished is held."""
        return not self._buffer

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take in bytes; gives the messages that are complete now, see ``plain``.

        Raises:
            MessageTooLarge: one is over the limit; known from its prefix, before it is held.
            WireError: one is compressed, and the call did not say how; or its first byte is
                neither of the two that gRPC has.
        """
        buffer = self._buffer
        buffer += data
        begin = 0
        while len(buffer) - begin >= PREFIX_BYTES:
            compressed, size = _prefix.unpack_from(buffer, begin)
            if size > self._limit:
                raise MessageTooLarge(f"a message has {size} bytes, at most {self._limit} may come")
            if compressed > 1:
                raise WireError(f"a message begins with {compressed}, neither 0 nor 1")
            if compressed and not is_codec(self._encoding):
                raise WireError("a message is compressed, and grpc-encoding does not say how")
            end = begin + PREFIX_BYTES + size
            if len(buffer) < end:
                break
            message = bytes(buffer[begin + PREFIX_BYTES : end])
            yield Packed(message) if compressed else message
            begin = end
        del buffer[:begin]

    def plain(self, message: Packed) -> Iterator[bytes]:
        """Unpack a message; yields parts of it, each of which takes about half a millisecond.

        Raises:
            MessageTooLarge: it is over the limit when it is unpacked.
            WireError: it is damaged.
        """
        try:
            yield from unpacked(message, self._encoding, self._limit)
        except LongMessage as error:
            raise MessageTooLarge(str(error)) from error
        except BadMessage as error:
            raise WireError(str(error)) from error


def metadata_of(headers: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """Return what a client sent as metadata: headers that are neither HTTP's nor gRPC's own.

    Raises:
        WireError: a binary value is not in base64.
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
    """Return metadata as it goes to a client.

    Raises:
        ValueError: a key or value cannot be sent.
    """
    found: Headers = []
    key: Any  # what handlers give is checked here
    value: Any
    for key, value in metadata:
        if not isinstance(key, str) or not isinstance(value, str | bytes):
            text = f"metadata are texts or bytes by name, not {key!r}: {value!r}"
            raise ValueError(text)  # noqa: TRY004  as all that cannot be sent
        if not _KEY.fullmatch(key) or (key.startswith("grpc-") and not key.endswith("-bin")):
            raise ValueError(f"{key!r} is no name of metadata")
        if key.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            found.append((key.encode(), base64.b64encode(raw).rstrip(b"=")))
        else:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if not _VALUE.fullmatch(text):
                raise ValueError(f"the value of {key} is not printable ASCII: {text!r}")
            found.append((key.encode(), text.encode()))
    return found


def timeout_seconds(value: bytes) -> float:
    """Return the seconds that ``grpc-timeout`` gives.

    Raises:
        WireError: it has another form.
    """
    match = _TIMEOUT.fullmatch(value.decode("latin-1"))
    if match is None:
        raise WireError(f"grpc-timeout is {value.decode('latin-1')!r}: digits and one of HMSmun")
    return int(match[1]) * _UNITS[match[2]]


def status_text(text: str) -> bytes:
    """Return a status message as ``grpc-message`` has it: UTF-8, percent-encoded."""
    return quote(text, safe=_TEXT_SAFE, errors="replace").encode()


def _binary(value: bytes, key: str) -> bytes:
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise WireError(f"the value of {key} is not in base64") from error


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")

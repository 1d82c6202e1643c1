"""Decompression of request bodies: gzip and deflate (RFC 9110, section 8.4.1).

Bodies are decompressed in slices, yielding to the event loop in between, up to a limit on the
decompressed size.
"""

import asyncio
import zlib

SUPPORTED = ("gzip", "deflate")
"""Supported encodings, sent in the accept-encoding header of the error response."""

_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_SLICE = 256 * 2**10
"""Output size per event-loop iteration, bytes; takes about 1 ms."""
_GZIP, _ZLIB, _RAW = 31, 15, -15
"""zlib's ``wbits``, which also select the container format."""
_METHOD_MASK, _DEFLATE, _HEADER_MULTIPLE = 0x0F, 8, 31


class UnknownEncoding(ValueError):
    """The content-encoding is not supported."""


class BrokenBody(ValueError):
    """The body does not match its content-encoding."""


class OversizedBody(ValueError):
    """The decompressed body exceeds the limit."""


def decompressor(content_encoding: str, limit: int) -> "Decompressor | None":
    """Return a decompressor for a content-encoding, or None for identity.

    Args:
        content_encoding: Value of the header, which is a list. A body that is encoded more than
            once is not supported.
        limit: Maximum size of the decompressed body, bytes.

    Raises:
        UnknownEncoding: The encoding is not supported.
    """
    listed = (name.strip().lower() for name in content_encoding.split(","))
    given = [name for name in listed if name not in {"", "identity"}]
    if not given:
        return None
    if len(given) > 1 or given[0] not in _NAMES:
        raise UnknownEncoding(
            f"content-encoding {content_encoding[:40]!r} is not supported: send the body "
            f"uncompressed or as {' or '.join(SUPPORTED)}"
        )
    return Decompressor(_NAMES[given[0]], limit)


class Decompressor:
    """Decompresses one body."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._left = limit
        self._stream = zlib.decompressobj(_GZIP)
        self._member_open = False
        """Whether data of the current gzip member has arrived."""

    async def feed(self, data: bytes, *, last: bool) -> bytes:
        """Decompress the next bytes of the body.

        Args:
            data: Compressed bytes, split at any position.
            last: Whether these are the last bytes.

        Raises:
            BrokenBody: The data is corrupt or incomplete.
            OversizedBody: The decompressed body exceeds the limit.
        """
        parts: list[bytes] = []
        while data or self._member_open:
            if not self._member_open:
                self._open_member(data)
            part = self._slice(data)
            parts.append(part)
            data = self._stream.unconsumed_tail
            if self._stream.eof:
                self._member_open = False
                data = self._stream.unused_data
                if data and self._name != "gzip":  # only gzip allows several members
                    raise BrokenBody(f"the body has data after the end of its {self._name} stream")
            elif not part and not data:
                break
            await asyncio.sleep(0)
        if last and self._member_open:
            raise BrokenBody(f"the body's {self._name} data is truncated")
        return b"".join(parts)

    def _open_member(self, data: bytes) -> None:
        self._member_open = True
        bits = _GZIP
        if self._name == "deflate":
            # HTTP requires the zlib header, but some clients omit it.
            wrapped = data[0] & _METHOD_MASK == _DEFLATE
            if len(data) > 1:
                wrapped = wrapped and (data[0] << 8 | data[1]) % _HEADER_MULTIPLE == 0
            bits = _ZLIB if wrapped else _RAW
        self._stream = zlib.decompressobj(bits)

    def _slice(self, data: bytes) -> bytes:
        try:
            part = self._stream.decompress(data, min(_SLICE, self._left + 1))
        except zlib.error as error:
            raise BrokenBody(f"the body is not valid {self._name}: {error}") from error
        self._left -= len(part)
        if self._left < 0:
            raise OversizedBody
        return part

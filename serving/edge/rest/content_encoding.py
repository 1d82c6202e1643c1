"""Request bodies that come compressed: gzip and deflate (RFC 9110, section 8.4.1).

A body is decompressed in slices, with turns of the event loop between them, up to the limit of its
decompressed size: a small body cannot become a large one.
"""

import asyncio
import zlib

SUPPORTED = ("gzip", "deflate")
"""What the accept-encoding header of a refusal lists."""

_NAMES = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_SLICE = 256 * 2**10
"""Bytes of output between two turns of the event loop: about 1 ms of work."""
_GZIP, _ZLIB, _RAW = 31, 15, -15
"""Window bits of zlib, which say what is around the data."""
_METHOD_MASK, _DEFLATE, _HEADER_MULTIPLE = 0x0F, 8, 31


class UnknownEncoding(ValueError):
    """The content-encoding is not supported."""


class BrokenBody(ValueError):
    """The body is not what its content-encoding says."""


class OversizedBody(ValueError):
    """The decompressed body is over the limit."""


def decompressor(content_encoding: str, limit: int) -> "Decompressor | None":
    """Return what decompresses a body to at most ``limit`` bytes; an identity body needs None.

    Raises:
        UnknownEncoding: the header's value is not supported.
    """
    given = content_encoding.strip().lower()
    if given in {"", "identity"}:
        return None
    if given not in _NAMES:
        raise UnknownEncoding(
            f"content-encoding {content_encoding[:40]!r} is not supported: send the body as it "
            f"is, or as {' or '.join(SUPPORTED)}"
        )
    return Decompressor(_NAMES[given], limit)


class Decompressor:
    """Decompresses one body."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._left = limit
        self._stream = zlib.decompressobj(_GZIP)
        self._begun = False
        """Data of a member has come."""

    async def feed(self, data: bytes, *, last: bool) -> bytes:
        """Return what the next bytes of the body decompress to.

        Args:
            data: compressed bytes, cut anywhere.
            last: no more follow.

        Raises:
            BrokenBody: the data is damaged, or it ends too early.
            OversizedBody: more comes out than the limit allows.
        """
        parts: list[bytes] = []
        while data or self._begun:
            if not self._begun:
                self._begin(data)
            part = self._slice(data)
            parts.append(part)
            data = self._stream.unconsumed_tail
            if self._stream.eof:
                self._begun = False
                data = self._stream.unused_data
                if data and self._name != "gzip":  # only gzip may have several members
                    raise BrokenBody(f"more data follows the body's {self._name} stream")
            elif not part and not data:
                break
            await asyncio.sleep(0)
        if last and self._begun:
            raise BrokenBody(f"the body's {self._name} data ends too early")
        return b"".join(parts)

    def _begin(self, data: bytes) -> None:
        self._begun = True
        bits = _GZIP
        if self._name == "deflate":
            # With zlib's header as HTTP wants it, or without as some clients send it.
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

"""Compression of messages with gzip or deflate, a piece at a time.

A small message can decompress to a large one, and compressing a large one takes time. The
generators here do a bounded amount of work per item, which lets the event loop run in between.

The compression of responses (grpc/grpc, doc/compression.md) is set by the handler
(``set_compression``) or by the server; otherwise it is the same as for the client's messages. It is
used only if the client accepts it and the result is smaller.
"""

import zlib
from collections.abc import Iterator

import grpc

ENCODINGS = ("identity", "deflate", "gzip")
ACCEPTED = ",".join(ENCODINGS)
"""Value of ``grpc-accept-encoding``."""
_NAMES = {
    grpc.Compression.NoCompression: "identity",
    grpc.Compression.Deflate: "deflate",
    grpc.Compression.Gzip: "gzip",
}
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
COMPRESS_CHUNK = 2**15
"""Input size of one compression step, bytes; takes about 0.5 ms."""
DECOMPRESS_CHUNK = 2**18
"""Maximum output size of one decompression step, bytes; takes about 0.5 ms."""
MIN_BYTES = 128
"""Minimum size of compressed messages, bytes. Shorter ones, such as most streamed tokens, gain
almost nothing: the format adds 12 to 18 bytes."""
_LEVEL = 3
"""zlib's compression level; takes a quarter of the time of the default level, 6, and produces 8 %
more bytes (JSON)."""
_SMALL_MEMORY = 5
_LARGE_MEMORY = 8
"""zlib's ``memLevel``. At level 8, clearing the memory takes 50 us, whereas compressing 1 KiB takes
10 us."""


class BadMessage(Exception):
    """A message cannot be decompressed; the error text is sent to the peer."""


class LongMessage(BadMessage):
    """The decompressed message exceeds the limit."""


def is_codec(encoding: str) -> bool:
    """Return whether an encoding is a supported compression."""
    return encoding in _WINDOW_BITS


def name_of(compression: grpc.Compression | None) -> str | None:
    """Return the ``grpc-encoding`` name of a compression; None for None."""
    return None if compression is None else _NAMES[compression]


def accepts(accept_encoding: bytes, encoding: str) -> bool:
    """Return whether a client with this ``grpc-accept-encoding`` accepts an encoding."""
    return any(each.strip() == encoding.encode() for each in accept_encoding.split(b","))


def decompressed(message: bytes, encoding: str, limit: int) -> Iterator[bytes]:
    """Decompress a message to at most ``limit`` bytes, yielding it in parts.

    Some clients leave empty messages as they are but mark them as compressed.

    Raises:
        LongMessage: The decompressed message exceeds ``limit``.
        BadMessage: The message is corrupt.
    """
    if not message:
        return
    engine = zlib.decompressobj(_WINDOW_BITS[encoding])
    size, rest = 0, message
    while not engine.eof:
        try:
            part = engine.decompress(rest, min(DECOMPRESS_CHUNK, limit + 1 - size))
        except zlib.error as error:
            raise BadMessage(f"cannot decompress the message: {error}") from error
        size += len(part)
        if size > limit:
            raise LongMessage(f"the decompressed message exceeds the limit of {limit} bytes")
        rest = engine.unconsumed_tail
        if not part and not rest and not engine.eof:
            raise BadMessage("cannot decompress the message: the compressed data is truncated")
        yield part
    if engine.unused_data:
        raise BadMessage("cannot decompress the message: data follows the compressed data")


def compressed_parts(message: bytes, encoding: str) -> Iterator[bytes]:
    """Compress a message, yielding the result in parts, which may be empty."""
    memory = _SMALL_MEMORY if len(message) <= COMPRESS_CHUNK else _LARGE_MEMORY
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding], memory)
    view = memoryview(message)
    for begin in range(0, len(view), COMPRESS_CHUNK):
        yield engine.compress(view[begin : begin + COMPRESS_CHUNK])
    yield engine.flush()

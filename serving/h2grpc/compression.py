"""Messages compressed with gzip or deflate, a piece at a time.

A small message can unpack to a large one, and a large one takes long to pack: each generator here
does one bounded piece of work an item, so that the event loop can turn in between.

Which answers are compressed (grpc/grpc, doc/compression.md): as the handler says
(``set_compression``), else as the server says, else as the client compresses its own messages.
Never in a form that the client does not accept, and not where it gains nothing.
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
PIECE_PACKED = 2**15
"""Bytes that are packed at a time: about 0.5 ms."""
PIECE_UNPACKED = 2**18
"""Bytes that are unpacked at a time: about as long."""
MIN_BYTES = 128
"""Shorter messages, such as most streamed tokens, are sent as they are: the form itself takes 12
to 18 bytes, so that there is next to nothing to gain."""
_LEVEL = 3
"""A quarter of the time of zlib's default, 6, and 8 % more bytes (JSON and source text)."""
_SMALL_MEMORY = 5
_LARGE_MEMORY = 8
"""zlib's ``memLevel``. To clear the memory of level 8 takes 50 us, to pack 1 KiB 10 us."""


class BadMessage(Exception):
    """A message does not unpack; the text is for the peer."""


class LongMessage(BadMessage):
    """It is over the limit when it is unpacked."""


def is_codec(encoding: str) -> bool:
    """Return whether messages can be compressed in this way."""
    return encoding in _WINDOW_BITS


def name_of(compression: grpc.Compression | None) -> str | None:
    """Return the name of a way to compress as it is in headers; None for None."""
    return None if compression is None else _NAMES[compression]


def accepts(accept_encoding: bytes, encoding: str) -> bool:
    """Return whether a client with this ``grpc-accept-encoding`` reads an encoding."""
    return any(each.strip() == encoding.encode() for each in accept_encoding.split(b","))


def unpacked(message: bytes, encoding: str, limit: int) -> Iterator[bytes]:
    """Unpack a message of at most ``limit`` bytes; yields parts of it.

    Raises:
        LongMessage: it is longer.
        BadMessage: it is damaged.
    """
    engine = zlib.decompressobj(_WINDOW_BITS[encoding])
    size, rest = 0, message
    while not engine.eof:
        try:
            part = engine.decompress(rest, min(PIECE_UNPACKED, limit + 1 - size))
        except zlib.error as error:
            raise BadMessage(f"a message is damaged: {error}") from error
        size += len(part)
        if size > limit:
            raise LongMessage(f"a message has more than {limit} bytes when it is unpacked")
        rest = engine.unconsumed_tail
        if not part and not rest and not engine.eof:
            raise BadMessage("a message is damaged: its compressed form has no end")
        yield part


def packed(message: bytes, encoding: str) -> Iterator[bytes]:
    """Compress a message; yields parts of its compressed form, which may be empty."""
    memory = _SMALL_MEMORY if len(message) <= PIECE_PACKED else _LARGE_MEMORY
    engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding], memory)
    view = memoryview(message)
    for begin in range(0, len(view), PIECE_PACKED):
        yield engine.compress(view[begin : begin + PIECE_PACKED])
    yield engine.flush()

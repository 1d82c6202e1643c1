"""The bytes that floods send: input that a client can send and a server must process.

Each flood has an opening, sent once per connection, and a body, repeated without reading answers.
"""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

WRITE = 169_000
"""Size of one write, bytes: 13,000 HEADERS frames of an indexed request."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RST, _SETTINGS, _PING = 0, 1, 2, 3, 4, 6
_GOAWAY, _WINDOW_UPDATE, _CONTINUATION, _UNKNOWN = 7, 8, 9, 0xB
_END_STREAM, _END_HEADERS, _ACK, _PADDED = 1, 4, 1, 8
_GET = bytes((0x82, 0x86, 0x84))
"""GET, http, /: three entries of HPACK's static table."""
_LETTERS = 30_000


@dataclass(frozen=True, slots=True)
class Flood:
    """One kind of flood."""

    name: str
    opening: bytes
    bodies: Callable[[], Iterator[bytes]]
    """Return an endless series of writes for one connection."""
    churn: bool = False
    """Whether to close the connection after each write, and connect again."""


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """Return an HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


_OPENING = PREFACE + frame(_SETTINGS, 0, 0)


def _same(piece: bytes) -> Callable[[], Iterator[bytes]]:
    """Return a source of writes that repeat a piece."""

    def bodies() -> Iterator[bytes]:
        write = piece * max(1, WRITE // len(piece))
        while True:
            yield write

    return bodies


def _numbered(piece: Callable[[int], bytes]) -> Callable[[], Iterator[bytes]]:
    """Return a source of writes that repeat a piece, each time on a new stream."""

    def bodies() -> Iterator[bytes]:
        streams = count(1, 2)
        while True:
            write = bytearray()
            while len(write) < WRITE:
                write += piece(next(streams))
            yield bytes(write)

    return bodies


def _get(stream: int) -> bytes:
    return frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _GET)


def _length(prefix: int, bits: int, number: int) -> bytes:
    """Encode an integer after ``bits`` bits of prefix (RFC 7541, section 5.1)."""
    most = (1 << (8 - bits)) - 1
    if number < most:
        return bytes((prefix | number,))
    found, number = bytearray((prefix | most,)), number - most
    while number >= 0x80:  # noqa: PLR2004  seven bits per byte
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _field(name: str, value: bytes, *, kept: bool = False, huffman: bool = False) -> bytes:
    """Return a literal header field; ``kept`` adds it to the receiver's table."""
    head = bytes((0x40 if kept else 0x00,)) + _length(0, 1, len(name)) + name.encode()
    return head + _length(0x80 if huffman else 0, 1, len(value)) + value


def _grpc_head(path: str) -> bytes:
    """Return the headers of a gRPC call, encoded without the dynamic table."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(_field(name, value.encode()) for name, value in fields.items())


def _huffman_of_x(letters: int) -> bytes:
    """Return the Huffman code of ``"x" * letters``, 7 bits each; ``letters`` is a multiple of 8."""
    return int("1111001" * letters, 2).to_bytes(letters * 7 // 8)


def http2_floods(path: str) -> list[Flood]:
    """Return the floods of a gRPC port; ``path`` is an existing method."""
    head = _grpc_head(path)
    table = b"".join(_field(f"a{n}", b"x" * 40, kept=True) for n in range(300))
    huffman = _field("a", _huffman_of_x(_LETTERS), huffman=True)
    opened = frame(_HEADERS, _END_HEADERS, 1, head)
    metadata = b"".join(_field(f"key-{n}", b"x" * 20) for n in range(100))
    binary = _field("large-bin", b"QUFB" * 3_000)
    reset = frame(_RST, 0, 1, struct.pack(">I", 8))

    def call(stream: int, flags: int = 0) -> bytes:
        return frame(_HEADERS, _END_HEADERS | flags, stream, head)

    floods = {
        "HEADERS, GET /": _numbered(_get),
        "HEADERS of calls without a message": _numbered(lambda n: call(n, _END_STREAM)),
        "HEADERS of calls that stay open": _numbered(call),
        "HEADERS and 60 CONTINUATION": _numbered(
            lambda n: (
                frame(_HEADERS, _END_STREAM, n, _GET[:1])
                + frame(_CONTINUATION, 0, n) * 59
                + frame(_CONTINUATION, _END_HEADERS, n, _GET[1:])
            )
        ),
        "HEADERS never complete": _numbered(
            lambda n: frame(_HEADERS, 0, n, _GET) + frame(_CONTINUATION, 0, n) * 10_000
        ),
        "HEADERS and RST_STREAM": _numbered(
            lambda n: call(n) + frame(_RST, 0, n, struct.pack(">I", 8))
        ),
        "HEADERS, 300 new fields": _numbered(
            lambda n: frame(_HEADERS, _END_HEADERS | _END_STREAM, n, _GET + table)
        ),
        "HEADERS, 1,200 indexed fields": _numbered(
            lambda n: frame(_HEADERS, _END_HEADERS | _END_STREAM, n, _GET + b"\x90" * 1200)
        ),
        "HEADERS, 30 KB in Huffman's code": _numbered(
            lambda n: (
                frame(_HEADERS, _END_STREAM, n, _GET)
                + frame(_CONTINUATION, 0, n, huffman[:16_000])
                + frame(_CONTINUATION, _END_HEADERS, n, huffman[16_000:])
            )
        ),
        "HPACK table size updates": _numbered(
            lambda n: (
                frame(_HEADERS, _END_STREAM, n, b"\x20" * 16_000)
                + frame(_CONTINUATION, 0, n, b"\x20" * 16_000) * 8
                + frame(_CONTINUATION, _END_HEADERS, n, _GET)
            )
        ),
        "PING": _same(frame(_PING, 0, 0, b"12345678")),
        "PING, ACK": _same(frame(_PING, _ACK, 0, b"12345678")),
        "SETTINGS, empty": _same(frame(_SETTINGS, 0, 0)),
        "SETTINGS, window up and down": _same(
            frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 65_535))
            + frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 70_000))
        ),
        "SETTINGS, ACK": _same(frame(_SETTINGS, _ACK, 0)),
        "PRIORITY": _numbered(lambda n: frame(_PRIORITY, 0, n, struct.pack(">IB", 0, 16))),
        "WINDOW_UPDATE": _same(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))),
        "unknown frames": _same(frame(_UNKNOWN, 0, 0)),
        "GOAWAY": _same(frame(_GOAWAY, 0, 0, struct.pack(">II", 0, 0))),
        "calls with 100 metadata, no message": _numbered(
            lambda n: frame(_HEADERS, _END_HEADERS | _END_STREAM, n, head + metadata)
        ),
        "calls with 12 KB of -bin": _numbered(
            lambda n: frame(_HEADERS, _END_HEADERS | _END_STREAM, n, head + binary)
        ),
        "health checks": _numbered(
            lambda n: (
                frame(_HEADERS, _END_HEADERS, n, _grpc_head("/grpc.health.v1.Health/Check"))
                + frame(_DATA, _END_STREAM, n, bytes(5))
            )
        ),
    }
    on_a_stream = {
        "DATA, empty": _same(frame(_DATA, 0, 1)),
        "DATA, one byte": _same(frame(_DATA, 0, 1, b"\0")),
        "DATA, padding only": _same(frame(_DATA, _PADDED, 1, bytes((255,)) + bytes(255))),
        "WINDOW_UPDATE to the limit": _same(
            frame(_WINDOW_UPDATE, 0, 1, struct.pack(">I", 2**31 - 1 - 65_535))
        ),
        "RST_STREAM of a closed stream": _same(reset),
    }
    found = [Flood(name, _OPENING, bodies) for name, bodies in floods.items()]
    found += [
        Flood(name, _OPENING + opened + (reset if "closed" in name else b""), bodies)
        for name, bodies in on_a_stream.items()
    ]
    found.append(Flood("connections that greet and go", b"", _same(_OPENING), churn=True))
    return found


def http1_floods(path: str) -> list[Flood]:
    """Return the floods of a REST port; ``path`` is a route that accepts a body."""
    get = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    headers = b"".join(b"a%d:\r\n" % n for n in range(10_000))
    chunked = f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    chunked += "content-type: application/json\r\n\r\n"
    missing = b"GET /no HTTP/1.1\r\nhost: x\r\n\r\n"
    message = {"role": "user", "content": "hi"}
    refused, taken = ({"model": "pocket-r1", "messages": [message] * n} for n in (10_000, 5_000))
    numbers = b'{"model": "pocket-r1", "messages": [' + b"1," * 1_900_000 + b"1]}"
    extended = chunked.encode() + b"1;a=" + b"x" * 200 + b"\r\n \r\n"
    expecting = get[:-2].replace(b"GET /health", b"POST /v1/completions")
    expecting += b"expect: 100-continue\r\ncontent-length: 0\r\n\r\n"
    return [
        Flood("pipelined requests", b"", _same(get)),
        Flood("pipelined requests for nothing", b"", _same(missing)),
        Flood("pipelined requests, HTTP/1.0", b"", _same(get.replace(b"1.1", b"1.0"))),
        Flood("10,000 headers", b"GET / HTTP/1.1\r\nhost: x\r\n", _same(headers), churn=True),
        Flood("90 headers, pipelined", b"", _same(get[:-2] + b"a: b\r\n" * 90 + b"\r\n")),
        Flood("chunks of one byte", chunked.encode(), _same(b"1\r\n \r\n")),
        Flood("a line of garbage", b"", _same(b"x" * 1_000_000), churn=True),
        Flood("half a request", b"", _same(get[:-2]), churn=True),
        Flood("one request a connection", b"", _same_once(get), churn=True),
        Flood("chunk extensions", chunked.encode(), _same(extended[len(chunked) :])),
        Flood("expect: 100-continue", b"", _same(expecting)),
        Flood("upgrade: h2c", b"", _same(get[:-2] + _UPGRADE), churn=True),
        Flood("OPTIONS of another origin", b"", _same(_PREFLIGHT)),
        Flood("/metrics", b"", _same(get.replace(b"/health", b"/metrics"))),
        Flood("/v1/models", b"", _same(get.replace(b"/health", b"/v1/models"))),
        Flood("bodies of 4 MB of [", b"", _same(_posted(b"[" * 4_000_000))),
        Flood("chats of 1.9 million numbers", b"", _same(_posted(numbers))),
        Flood("chats of 10,000 messages", b"", _same(_posted(json.dumps(refused).encode()))),
        Flood("chats of 5,000 messages", b"", _same(_posted(json.dumps(taken).encode()))),
    ]


_UPGRADE = (
    b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n"
)
_PREFLIGHT = (
    b"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: http://x\r\n"
    b"access-control-request-method: POST\r\n\r\n"
)


def _posted(body: bytes) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def _same_once(piece: bytes) -> Callable[[], Iterator[bytes]]:
    """Return a source of writes of one piece each."""

    def bodies() -> Iterator[bytes]:
        while True:
            yield piece

    return bodies

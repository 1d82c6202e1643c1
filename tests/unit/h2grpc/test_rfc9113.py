"""RFC 9113's rules for what a client may send: one row per rule, without sockets.

A violated rule ends the connection (GOAWAY) or the stream (RST_STREAM) with the code that the RFC
specifies; input that the RFC permits ends nothing. After each row, a PING shows the result.
"""

import asyncio
import struct
from dataclasses import dataclass

import pytest
from h2.errors import ErrorCodes as Code
from h2.settings import SettingCodes as Setting
from hpack import Encoder, NeverIndexedHeaderTuple
from hyperframe.frame import Frame, GoAwayFrame, PingFrame, RstStreamFrame, SettingsFrame

from serving.h2grpc.connection import Connection
from serving.h2grpc.server import Server
from tests.unit.h2grpc.conftest import methods
from tests.unit.h2grpc.raw_client import message, request
from tests.unit.h2grpc.transport import Transport

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY, ACK = 1, 4, 8, 0x20, 1
MOST = 2**31 - 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + number(stream) + payload


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def setting(code: int, value: int) -> bytes:
    return struct.pack(">HI", code, value)


def block(*more, path="/t.T/su", without=()) -> bytes:
    """Return a request's headers, encoded without the table."""
    headers = [each for each in request(path) if each[0] not in without]
    return encoded(*headers, *more)


def encoded(*headers) -> bytes:
    return Encoder().encode([NeverIndexedHeaderTuple(*each) for each in headers], huffman=False)


def begin(stream: int = 1, *more, end: bool = False, without=()) -> bytes:
    """Return HEADERS of a call that stays open until the client ends it."""
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, stream, block(*more, without=without))


def trailers(*headers, end: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), 1, encoded(*headers))


BEGIN = begin()
HELLO = frame(SETTINGS, 0, 0)
WHOLE = BEGIN + frame(DATA, END_STREAM, 1, message(b"x"))
GIVEN_UP = BEGIN + frame(RST, 0, 1, number(8))
# So long a message cannot be sent at once: the stream stays half-closed (remote).
HALF_CLOSED = frame(HEADERS, END_HEADERS, 1, block(path="/t.T/us")) + frame(
    DATA, END_STREAM, 1, message(b"x" * 10)
)


@dataclass
class Fails:
    """The connection ends, or one stream does."""

    code: Code
    stream: int = 0


FINE = Fails(Code.NO_ERROR)
PROTOCOL, SIZE = Fails(Code.PROTOCOL_ERROR), Fails(Code.FRAME_SIZE_ERROR)
FLOW, CLOSED = Fails(Code.FLOW_CONTROL_ERROR), Fails(Code.STREAM_CLOSED)
COMPRESSION = Fails(Code.COMPRESSION_ERROR)
MALFORMED = Fails(Code.PROTOCOL_ERROR, 1)

FRAMES = [
    (
        "4.1",
        "an unknown type is ignored",
        frame(0x16, 0xFF, 0, b"x") + BEGIN + frame(99, 0, 1),
        FINE,
    ),
    ("4.1", "unknown flags are ignored", frame(PING, 0xFE, 0, b"x" * 8), FINE),
    ("4.1", "the reserved bit is ignored", frame(HEADERS, END_HEADERS, 2**31 + 1, block()), FINE),
    ("4.2", "a frame over the limit", BEGIN + frame(DATA, 0, 1, b"x" * (2**14 + 1)), SIZE),
    ("4.2", "an unknown frame over the limit", frame(99, 0, 0, b"x" * (2**14 + 1)), SIZE),
    ("4.2", "a frame at the limit", BEGIN + frame(DATA, 0, 1, message(b"x" * (2**14 - 5))), FINE),
    ("4.3", "no HPACK", frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"), COMPRESSION),
    ("4.3", "an index beyond the table", frame(HEADERS, END_HEADERS, 1, b"\xfe"), COMPRESSION),
    (
        "4.3.1",
        "a table larger than we allow",
        frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\x03" + block()),
        COMPRESSION,
    ),
    ("5.1", "DATA on an idle stream", frame(DATA, 0, 1, b"x"), PROTOCOL),
    ("5.1", "RST_STREAM on an idle stream", frame(RST, 0, 1, number(8)), PROTOCOL),
    ("5.1", "WINDOW_UPDATE on an idle stream", frame(WINDOW, 0, 1, number(1)), PROTOCOL),
    ("5.1", "PRIORITY on an idle stream", frame(PRIORITY, 0, 1, number(0) + b"\1"), FINE),
    (
        "5.1",
        "DATA on a half-closed stream",
        HALF_CLOSED + frame(DATA, 0, 1, b"x"),
        Fails(Code.STREAM_CLOSED, 1),
    ),
    (
        "5.1",
        "HEADERS on a half-closed stream",
        HALF_CLOSED + trailers(("a", "b")),
        Fails(Code.STREAM_CLOSED, 1),
    ),
    (
        "5.1",
        "WINDOW_UPDATE on a half-closed one",
        HALF_CLOSED + frame(WINDOW, 0, 1, number(1)),
        FINE,
    ),
    (
        "5.1",
        "PRIORITY on a half-closed one",
        HALF_CLOSED + frame(PRIORITY, 0, 1, b"\0\0\0\0\1"),
        FINE,
    ),
    ("5.1", "RST_STREAM on a half-closed one", HALF_CLOSED + frame(RST, 0, 1, number(8)), FINE),
    (
        "5.1",
        "DATA on a closed stream",
        (WHOLE, frame(DATA, 0, 1, b"x")),
        Fails(Code.STREAM_CLOSED, 1),
    ),
    ("5.1", "HEADERS on a closed stream", (WHOLE, BEGIN), CLOSED),
    ("5.1", "WINDOW_UPDATE on a closed stream", (WHOLE, frame(WINDOW, 0, 1, number(1))), FINE),
    ("5.1", "RST_STREAM on a closed stream", (WHOLE, frame(RST, 0, 1, number(8))), FINE),
    ("5.1", "PRIORITY on a closed stream", (WHOLE, frame(PRIORITY, 0, 1, number(0) + b"\1")), FINE),
    (
        "5.1",
        "DATA after RST_STREAM",
        GIVEN_UP + frame(DATA, 0, 1, b"x"),
        Fails(Code.STREAM_CLOSED, 1),
    ),
    ("5.1", "HEADERS after RST_STREAM", GIVEN_UP + BEGIN, Fails(Code.STREAM_CLOSED, 1)),
    ("5.1.1", "an even number", begin(2), PROTOCOL),
    ("5.1.1", "a lower number than before", begin(3) + begin(1), PROTOCOL),
    (
        "5.1.1",
        "DATA on a stream passed over",
        begin(3) + frame(DATA, 0, 1, b"x"),
        Fails(Code.STREAM_CLOSED, 1),
    ),
    ("6.1", "DATA on stream 0", frame(DATA, 0, 0, b"x"), PROTOCOL),
    ("6.1", "padding as long as the frame", BEGIN + frame(DATA, PADDED, 1, b"\2xx"[:2]), PROTOCOL),
    ("6.1", "padding without its length", BEGIN + frame(DATA, PADDED, 1), SIZE),
    ("6.1", "nothing but padding", BEGIN + frame(DATA, PADDED, 1, b"\2\0\0"), FINE),
    ("6.2", "HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, block()), PROTOCOL),
    (
        "6.2",
        "padding over all",
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + block()),
        PROTOCOL,
    ),
    (
        "6.2",
        "padding and priority",
        frame(HEADERS, 0x2C, 1, b"\3" + number(0) + b"\1" + block() + b"\0\0\0"),
        FINE,
    ),
    ("6.2", "priority cut off", frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"\0\0"), SIZE),
    (
        "5.3.1 of RFC 7540",
        "a stream that depends on itself",
        frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, number(1) + b"\1" + block()),
        MALFORMED,
    ),
    (
        "5.3.1 of RFC 7540",
        "PRIORITY of a stream that depends on itself",
        BEGIN + frame(PRIORITY, 0, 1, number(1) + b"\1"),
        MALFORMED,
    ),
    ("6.3", "PRIORITY on stream 0", frame(PRIORITY, 0, 0, number(1) + b"\1"), PROTOCOL),
    (
        "6.3",
        "PRIORITY of four bytes",
        BEGIN + frame(PRIORITY, 0, 1, number(0)),
        Fails(Code.FRAME_SIZE_ERROR, 1),
    ),
    ("6.4", "RST_STREAM on stream 0", frame(RST, 0, 0, number(8)), PROTOCOL),
    ("6.4", "RST_STREAM of three bytes", BEGIN + frame(RST, 0, 1, b"\0\0\0"), SIZE),
    ("6.4", "RST_STREAM of five bytes", BEGIN + frame(RST, 0, 1, b"\0" * 5), SIZE),
    ("6.4", "RST_STREAM with an unknown code", BEGIN + frame(RST, 0, 1, number(0xFFFF)), FINE),
    ("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1), PROTOCOL),
    ("6.5", "SETTINGS of five bytes", frame(SETTINGS, 0, 0, b"\0" * 5), SIZE),
    ("6.5", "an ACK with settings", frame(SETTINGS, ACK, 0, setting(3, 1)), SIZE),
    ("6.5", "an ACK too many", frame(SETTINGS, ACK, 0) * 3, FINE),
    ("6.5.2", "ENABLE_PUSH 2", frame(SETTINGS, 0, 0, setting(Setting.ENABLE_PUSH, 2)), PROTOCOL),
    ("6.5.2", "ENABLE_PUSH 0", frame(SETTINGS, 0, 0, setting(Setting.ENABLE_PUSH, 0)), FINE),
    ("6.5.2", "ENABLE_PUSH 1", frame(SETTINGS, 0, 0, setting(Setting.ENABLE_PUSH, 1)), FINE),
    ("6.5.2", "INITIAL_WINDOW_SIZE 2^31", frame(SETTINGS, 0, 0, setting(4, 2**31)), FLOW),
    ("6.5.2", "INITIAL_WINDOW_SIZE 2^31-1", frame(SETTINGS, 0, 0, setting(4, MOST)), FINE),
    ("6.5.2", "MAX_FRAME_SIZE 16383", frame(SETTINGS, 0, 0, setting(5, 2**14 - 1)), PROTOCOL),
    ("6.5.2", "MAX_FRAME_SIZE 2^24", frame(SETTINGS, 0, 0, setting(5, 2**24)), PROTOCOL),
    ("6.5.2", "MAX_FRAME_SIZE 2^24-1", frame(SETTINGS, 0, 0, setting(5, 2**24 - 1)), FINE),
    ("6.5.2", "an unknown setting", frame(SETTINGS, 0, 0, setting(0xFF00, 9)), FINE),
    ("6.6", "PUSH_PROMISE", BEGIN + frame(PUSH, END_HEADERS, 1, number(2) + block()), PROTOCOL),
    ("6.7", "PING on a stream", frame(PING, 0, 1, b"x" * 8), PROTOCOL),
    ("6.7", "PING of seven bytes", frame(PING, 0, 0, b"x" * 7), SIZE),
    ("6.7", "PING of nine bytes", frame(PING, 0, 0, b"x" * 9), SIZE),
    ("6.7", "an answer to no PING", frame(PING, ACK, 0, b"x" * 8), FINE),
    ("6.8", "GOAWAY on a stream", BEGIN + frame(GOAWAY, 0, 1, b"\0" * 8), PROTOCOL),
    ("6.8", "GOAWAY of seven bytes", frame(GOAWAY, 0, 0, b"\0" * 7), SIZE),
    ("6.8", "GOAWAY", BEGIN + frame(GOAWAY, 0, 0, b"\0" * 8), FINE),
    ("6.9", "an increment of 0", frame(WINDOW, 0, 0, number(0)), PROTOCOL),
    ("6.9", "an increment of 0 on a stream", BEGIN + frame(WINDOW, 0, 1, number(0)), MALFORMED),
    ("6.9", "WINDOW_UPDATE of three bytes", BEGIN + frame(WINDOW, 0, 1, b"\0\0\1"), SIZE),
    ("6.9", "the reserved bit of an increment", frame(WINDOW, 0, 0, number(2**31 + 1)), FINE),
    ("6.9.1", "a window over 2^31-1", frame(WINDOW, 0, 0, number(MOST)), FLOW),
    (
        "6.9.1",
        "a stream's window over 2^31-1",
        BEGIN + frame(WINDOW, 0, 1, number(MOST)),
        Fails(Code.FLOW_CONTROL_ERROR, 1),
    ),
    (
        "6.9.2",
        "a setting that makes a stream's window too large",
        BEGIN + frame(WINDOW, 0, 1, number(MOST - 2**16)) + frame(SETTINGS, 0, 0, setting(4, MOST)),
        FLOW,
    ),
    ("6.10", "CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, block()), PROTOCOL),
    (
        "6.10",
        "CONTINUATION after the end of headers",
        BEGIN + frame(CONTINUATION, END_HEADERS, 1, block()),
        PROTOCOL,
    ),
    (
        "6.10",
        "CONTINUATION on another stream",
        frame(HEADERS, 0, 1, block()) + frame(CONTINUATION, END_HEADERS, 3),
        PROTOCOL,
    ),
    (
        "6.10",
        "another frame between",
        frame(HEADERS, 0, 1, block()) + frame(PING, 0, 0, b"x" * 8),
        PROTOCOL,
    ),
    (
        "6.10",
        "an unknown frame between",
        frame(HEADERS, 0, 1, block()) + frame(99, 0, 0, b"x"),
        PROTOCOL,
    ),
    (
        "6.10",
        "headers in three frames",
        frame(HEADERS, 0, 1, block()[:9])
        + frame(CONTINUATION, 0, 1, block()[9:12])
        + frame(CONTINUATION, END_HEADERS, 1, block()[12:]),
        FINE,
    ),
    ("8.1", "further HEADERS that do not end", BEGIN + trailers(("a", "b"), end=False), MALFORMED),
    ("8.1", "trailers", BEGIN + trailers(("a", "b")), FINE),
    (
        "8.1.1",
        "content-length too small",
        begin(1, ("content-length", "1")) + frame(DATA, END_STREAM, 1, message(b"x")),
        MALFORMED,
    ),
    (
        "8.1.1",
        "content-length too large",
        begin(1, ("content-length", "7")) + frame(DATA, END_STREAM, 1, message(b"x")),
        MALFORMED,
    ),
    ("8.1.1", "content-length of no DATA", begin(1, ("content-length", "1"), end=True), MALFORMED),
    (
        "8.1.1",
        "content-length before trailers",
        begin(1, ("content-length", "7")) + frame(DATA, 0, 1, message(b"x")) + trailers(("a", "b")),
        MALFORMED,
    ),
    (
        "8.1.1",
        "content-length as it is, before trailers",
        begin(1, ("content-length", "6")) + frame(DATA, 0, 1, message(b"x")) + trailers(("a", "b")),
        FINE,
    ),
    (
        "8.1.1",
        "content-length in trailers",
        BEGIN + frame(DATA, 0, 1, message(b"x")) + trailers(("content-length", "9")),
        FINE,
    ),
    ("8.1.1", "content-length of many digits", begin(1, ("content-length", "9" * 5000)), MALFORMED),
    ("8.1.1", "content-length in words", begin(1, ("content-length", "one")), MALFORMED),
    ("8.1.1", "two content-lengths", begin(1, *[("content-length", n) for n in "12"]), MALFORMED),
    (
        "8.1.1",
        "content-length as it is",
        begin(1, ("content-length", "6")) + frame(DATA, END_STREAM, 1, message(b"x")),
        FINE,
    ),
    ("8.2", "upper case", begin(1, ("Upper", "x")), MALFORMED),
    ("8.2", "upper case in trailers", BEGIN + trailers(("Upper", "x")), MALFORMED),
    ("8.2.1", "a control character in a name", begin(1, ("a\n", "x")), MALFORMED),
    ("8.2.1", "a space in a name", begin(1, ("a b", "x")), MALFORMED),
    ("8.2.1", "a colon in a name", begin(1, ("a:b", "x")), MALFORMED),
    ("8.2.1", "a line feed in a value", begin(1, ("a", "x\ny")), MALFORMED),
    ("8.2.1", "NUL in a value", begin(1, ("a", "x\0")), MALFORMED),
    ("8.2.2", "connection", begin(1, ("connection", "close")), MALFORMED),
    ("8.2.2", "keep-alive", begin(1, ("keep-alive", "1")), MALFORMED),
    ("8.2.2", "proxy-connection", begin(1, ("proxy-connection", "x")), MALFORMED),
    ("8.2.2", "transfer-encoding", begin(1, ("transfer-encoding", "chunked")), MALFORMED),
    ("8.2.2", "upgrade", begin(1, ("upgrade", "h2c")), MALFORMED),
    ("8.2.2", "te other than trailers", begin(1, ("te", "gzip"), without=("te",)), MALFORMED),
    (
        "8.3",
        "a pseudo-header after others",
        begin(1, (":authority", "x"), without=(":authority",)),
        MALFORMED,
    ),
    (
        "8.3",
        "an unknown pseudo-header",
        frame(HEADERS, 4, 1, encoded((":x", "y")) + block()),
        MALFORMED,
    ),
    ("8.3", "a response's", frame(HEADERS, 4, 1, encoded((":status", "200")) + block()), MALFORMED),
    ("8.3", "a pseudo-header in trailers", BEGIN + trailers((":path", "/")), MALFORMED),
    *[
        ("8.3.1", f"no {name}", begin(without=(name,)), MALFORMED)
        for name in (":method", ":scheme", ":path")
    ],
    *[
        ("8.3.1", f"two of {name}", frame(HEADERS, 4, 1, encoded((name, "x")) + block()), MALFORMED)
        for name in (":method", ":scheme", ":path", ":authority")
    ],
    (
        "8.3.1",
        "an empty path",
        frame(HEADERS, 4, 1, encoded((":path", "")) + block(without=(":path",))),
        MALFORMED,
    ),
]


async def said_to(*data: bytes) -> tuple[list[Frame], bool]:
    """Feed a connection; returns its frames and whether it closed."""
    server = Server()

    async def su(requests, context):
        return b"%d" % len([each async for each in requests])

    async def us(request, context):
        await context.write(request * 2**17)

    server.add_generic_rpc_handlers((methods(su=su, us=us),))
    connection = Connection(server)
    transport = Transport(connection)
    connection.connection_made(transport)
    for each in data:
        if not transport.closing:
            connection.data_received(each)
        while connection in server.turns:  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0)
        for _ in range(8):
            await asyncio.sleep(0)
    hung_up = transport.closing
    transport.close()
    while server.tasks or server.connections:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return frames_in(bytes(transport.written)), hung_up


def frames_in(data: bytes) -> list[Frame]:
    found = []
    while data:
        head, length = Frame.parse_frame_header(memoryview(data[:9]))
        head.parse_body(memoryview(data[9 : 9 + length]))
        found.append(head)
        data = data[9 + length :]
    return found


@pytest.mark.parametrize(
    ("frames", "end"), [pytest.param(*row[2:], id=f"{row[0]} {row[1]}") for row in FRAMES]
)
async def test_a_rule(frames, end):
    chunks = frames if isinstance(frames, tuple) else (frames,)
    frames, hung_up = await said_to(PREFACE + HELLO, *chunks, frame(PING, 0, 0, b"the last"))
    goaways = [each.error_code for each in frames if isinstance(each, GoAwayFrame)]
    resets = [
        (each.stream_id, each.error_code) for each in frames if isinstance(each, RstStreamFrame)
    ]
    answered = any(
        isinstance(each, PingFrame) and each.opaque_data == b"the last" for each in frames
    )
    if end.stream:
        assert resets == [(end.stream, end.code)]
    elif end is not FINE:
        assert goaways == [end.code]
    assert hung_up == bool(goaways) == (end is not FINE and not end.stream)
    assert answered == (not hung_up)
    if end is FINE:
        assert resets == []


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(PREFACE + frame(PING, 0, 0, b"x" * 8), id="no-settings"),
        pytest.param(PREFACE + BEGIN, id="headers-first"),
        pytest.param(PREFACE + frame(SETTINGS, ACK, 0), id="an-acknowledgement-first"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX" + HELLO, id="another-preface"),
        pytest.param(HELLO, id="no-preface"),
    ],
)
async def test_the_preface_of_section_3_4(greeting):
    frames, hung_up = await said_to(greeting)
    assert hung_up
    codes = [each.error_code for each in frames if isinstance(each, GoAwayFrame)]
    assert codes == [Code.PROTOCOL_ERROR]


async def test_settings_are_acknowledged_once_each():
    frames, _ = await said_to(PREFACE + HELLO, HELLO * 2)
    settings = [each for each in frames if isinstance(each, SettingsFrame)]
    assert ["ACK" in each.flags for each in settings] == [False, True, True, True]


async def test_a_ping_is_answered_with_what_it_brought():
    frames, _ = await said_to(PREFACE + HELLO, frame(PING, 0, 0, b"\0\1\2\3\4\5\6\7"))
    (pong,) = [each for each in frames if isinstance(each, PingFrame)]
    assert (pong.opaque_data, "ACK" in pong.flags, pong.stream_id) == (bytes(range(8)), True, 0)

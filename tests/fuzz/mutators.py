"""Changes to bytes, JSON and HTTP/2 frames, all from a seeded generator."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError

from tests.fuzz.odd import odd_value, paths

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = 9
_HEADERS, _DATA = 1, 0
_NAMES = (
    *(b":method", b":scheme", b":path", b":authority", b":protocol", b":status", b"te", b"host"),
    *(b"content-type", b"content-length", b"grpc-timeout", b"grpc-encoding", b"connection"),
    *(
        b"grpc-accept-encoding",
        b"user-agent",
        b"x-bin",
        b"x",
        b"X",
        b"",
        b"cookie",
        b"authorization",
    ),
    *(b"traceparent", b"x-request-id", b"transfer-encoding"),
)
_VALUES = (
    *(
        b"",
        b"POST",
        b"GET",
        b"http",
        b"/",
        b"*",
        b"trailers",
        b"application/grpc",
        b"gzip",
        b"a" * 500,
    ),
    *(
        b"application/grpc-web",
        b"application/grpc+proto",
        b"1S",
        b"0n",
        b"99999999H",
        b"-1m",
        b"deflate",
    ),
    *(
        b"identity",
        b"br",
        b"AAA",
        b"!!",
        b"\xff\xfe",
        b"0",
        b"5",
        b"18446744073709551616",
        b" x ",
        b"\0",
    ),
    *(b"\r\nx: y", b"chunked", b"keep-alive"),
)


def bytes_changed(rng: random.Random, data: bytes) -> bytes:
    """Flip, insert, delete, repeat or cut some bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        size = len(changed)
        at = rng.randrange(size + 1)
        some = changed[at : at + rng.choice((1, 1, 2, 4, 9, 30))]
        match rng.randrange(8):
            case 0 if at < size:
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < size:
                changed[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                changed[at:at] = rng.randbytes(rng.choice((1, 2, 4, 9)))
            case 3:
                del changed[at : at + len(some)]
            case 4:
                changed[at:at] = some * rng.choice((1, 2, 20))
            case 5:
                del changed[at:]
            case 6:
                to = rng.randrange(size + 1)
                changed[to:to] = some
            case _ if some:
                number = int.from_bytes(some) + rng.choice((-1, 1, 255, -256))
                changed[at : at + len(some)] = (number % 256 ** len(some)).to_bytes(len(some))
    return bytes(changed)


def pieces(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """Split bytes as a network might."""
    at = 0
    while at < len(data):
        size = rng.choice((1, 2, 3, 8, 9, 10, 40, 200, 1000, 10_000))
        yield data[at : at + size]
        at += size


def json_changed(rng: random.Random, text: bytes) -> bytes:
    """Remove, repeat, retype or rename one to three places of a JSON value."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return bytes_changed(rng, text)
    if not isinstance(value, dict | list):
        return bytes_changed(rng, text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if places := list(paths(value)):
            _place_changed(rng, value, places)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _place_changed(rng: random.Random, value: Any, places: list[tuple[Any, ...]]) -> None:
    way = rng.choice(places)
    inside, last = _at(value, way[:-1]), way[-1]
    given = inside[last]
    match rng.randrange(5):
        case 0:
            del inside[last]
        case 1:
            inside[last] = odd_value(rng)
        case 2:
            inside[last] = rng.choice(([given], {"x": given}, str(given), None))
        case 3 if isinstance(inside, dict):
            inside[rng.choice((str(last).upper(), f"{last} ", f"x{last}"))] = inside.pop(last)
        case _:
            inside[last] = copy.deepcopy(_at(value, rng.choice(places)))


def _at(value: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def frames_in(data: bytes) -> list[bytes]:
    """Split bytes after the preface into frames; the last may be incomplete."""
    found = []
    while data:
        size = _HEAD + int.from_bytes(data[:3])
        found.append(data[:size])
        data = data[size:]
    return found


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return a frame's bytes."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def frames_changed(rng: random.Random, data: bytes) -> bytes:
    """Repeat, drop, swap or change some frames of an HTTP/2 connection, after its preface."""
    frames = frames_in(data) or [b""]
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        if not frames:
            break
        at, to = rng.randrange(len(frames)), rng.randrange(len(frames) + 1)
        match rng.randrange(9):
            case 0:
                frames[at:at] = [frames[at]] * rng.choice((1, 1, 2, 50))
            case 1:
                del frames[at]
            case 2:
                frames.insert(to, frames.pop(at))
            case 3:
                frames.insert(to, frames[at])
            case 4:
                frames.insert(to, _any_frame(rng))
            case 5 | 6:
                frames[at] = _frame_changed(rng, frames[at])
            case 7:
                frames[at] = _headers_changed(rng, frames[at])
            case _:
                frames[at] = bytes_changed(rng, frames[at])
    return b"".join(frames)


def _any_frame(rng: random.Random) -> bytes:
    stream = rng.choice((0, 1, 1, 2, 3, 5, 7, 9, 2**31 - 1, 2**31 + 1))
    flags = rng.choice((0, 1, 4, 5, 8, 13, 0x20, 0x25, 0xFF))
    word = rng.choice((0, 1, 2, 2**14, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)).to_bytes(4)
    payloads = (
        *(b"", b"\0", b"12345678", word, word + b"\x10", word + word, b"\x82\x84\x86"),
        b"\0" + rng.randrange(1, 9).to_bytes() + word,
        (b"\0" + rng.randrange(1, 9).to_bytes() + word) * 3,
        b"\0\0\0\0\x03abc",
        b"\x01\0\0\0\x03abc",
        rng.randbytes(rng.randrange(40)),
    )
    return frame(rng.randrange(12), flags, stream, rng.choice(payloads))


def _frame_changed(rng: random.Random, data: bytes) -> bytes:
    if len(data) < _HEAD:
        return bytes_changed(rng, data)
    kind, flags, stream, payload = data[3], data[4], int.from_bytes(data[5:9]), data[9:]
    match rng.randrange(6):
        case 0:
            kind = rng.randrange(11)
        case 1:
            flags ^= rng.choice((1, 4, 8, 0x20, 5))
        case 2:
            stream = max(0, stream + rng.choice((-2, -1, 1, 2, 4, -stream))) % 2**32
        case 3:
            payload = bytes_changed(rng, payload)
        case 4:
            size = rng.randrange(len(payload) + 1)
            rest = frame(9 if kind == _HEADERS else kind, flags, stream, payload[size:])
            return frame(kind, flags & ~5, stream, payload[:size]) + rest
        case _:
            payload = bytes((rng.randrange(5),)) + payload + bytes(rng.randrange(5))
            flags |= 8
    return frame(kind, flags, stream, payload[: 2**24 - 1])


def _headers_changed(rng: random.Random, data: bytes) -> bytes:
    """Change the list of headers that a frame has; other frames are unchanged."""
    if len(data) < _HEAD or data[3] != _HEADERS or data[4] & 0x28:
        return data
    try:
        fields = [
            (bytes(name), bytes(value)) for name, value in Decoder().decode(data[9:], raw=True)
        ]
    except (HPACKError, IndexError):
        return data  # it refers to the table of the previous frames
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(fields) + 1)
        match rng.randrange(5):
            case 0:
                fields.insert(at, (rng.choice(_NAMES), rng.choice(_VALUES)))
            case 1 if at < len(fields):
                fields[at] = (fields[at][0], rng.choice(_VALUES))
            case 2 if at < len(fields):
                del fields[at]
            case 3 if at < len(fields):
                fields.append(fields[at])
            case _ if at < len(fields):
                name, value = fields[at]
                fields[at] = (bytes_changed(rng, name), bytes_changed(rng, value))
    never = [(name, value, True) for name, value in fields]  # not added to the table
    return frame(_HEADERS, data[4], int.from_bytes(data[5:9]), Encoder().encode(never))

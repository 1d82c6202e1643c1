"""gRPC's formats: messages in any pieces, metadata, timeouts, status messages."""

import gzip
import struct
import zlib
from collections import deque
from itertools import pairwise
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.h2grpc.wire import (
    Compressed,
    MessageReader,
    MessageTooLarge,
    WireError,
    framed,
    headers_of,
    metadata_of,
    status_text,
    timeout_seconds,
)

LIMIT = 1000


def packed(data: bytes) -> bytes:
    """Return compressed bytes as a message."""
    return struct.pack(">BI", 1, len(data)) + data


def read(reader: MessageReader, *chunks: bytes) -> tuple[list[bytes], type | None]:
    """Return the messages and the error that ends them."""
    found: deque[bytes] = deque()
    plain: list[bytes] = []
    error: type | None = None
    try:
        for chunk in chunks:
            found.extend(reader.feed(chunk))
    except WireError as raised:
        error = type(raised)
    try:
        plain.extend(plain_of(reader, message) for message in found)
    except WireError as raised:
        error = type(raised)
    return plain, error


def plain_of(reader: MessageReader, message: bytes) -> bytes:
    return b"".join(reader.plain(message)) if isinstance(message, Compressed) else message


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(at)]


WIRES = st.lists(
    st.one_of(
        st.binary(max_size=40).map(framed),
        st.binary(max_size=40).map(gzip.compress).map(packed),
        st.just(framed(b"x" * (LIMIT + 1))),  # too large
        st.just(packed(b"no gzip")),
    ),
    max_size=6,
).map(b"".join)


@given(WIRES, st.integers(0, 10), st.lists(st.integers(0, 10**6), max_size=12))
def test_however_it_is_cut_the_messages_are_the_same(wire, short, places):
    wire = wire[: len(wire) - short]
    whole, pieces = MessageReader(LIMIT, "gzip"), MessageReader(LIMIT, "gzip")
    expected = read(whole, wire)
    assert expected == read(pieces, *cut(wire, places))
    assert whole.empty == pieces.empty


@given(st.lists(st.binary(max_size=LIMIT), max_size=5))
def test_what_was_framed_is_read(messages):
    reader = MessageReader(LIMIT)
    assert (messages, None) == read(reader, b"".join(framed(message) for message in messages))
    assert reader.empty


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress)],
)
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param(b"", ([b""], None), id="empty"),
        pytest.param(b"x" * LIMIT, ([b"x" * LIMIT], None), id="at-the-limit"),
        pytest.param(b"x" * (LIMIT + 1), ([], MessageTooLarge), id="over-it"),
        pytest.param(b"\0" * 10**7, ([], MessageTooLarge), id="a-bomb"),
    ],
)
def test_compressed_messages(encoding, pack, message, expected):
    reader = MessageReader(LIMIT if len(message) < 10**6 else 10**5, encoding)
    assert expected == read(reader, packed(pack(message)))


def test_a_message_is_unpacked_only_when_it_is_wanted():
    """Otherwise a client could fill the memory with a thousand bytes per byte sent."""
    reader = MessageReader(10**6, "gzip")
    sent = gzip.compress(b"\0" * 10**6)
    (held,) = reader.feed(packed(sent))
    assert len(sent) == len(held)
    assert plain_of(reader, held) == b"\0" * 10**6


@pytest.mark.parametrize(
    ("encoding", "wire", "error"),
    [
        pytest.param("identity", packed(b"x"), WireError, id="compressed-without-an-encoding"),
        pytest.param("gzip", b"\2" + packed(b"x")[1:], WireError, id="unknown-compressed-flag"),
        pytest.param("snappy", packed(b"x"), WireError, id="unknown"),
        pytest.param("gzip", packed(b"x"), WireError, id="damaged"),
        pytest.param("gzip", packed(gzip.compress(b"x")[:-1]), WireError, id="cut-off"),
        pytest.param("gzip", packed(zlib.compress(b"x")), WireError, id="the-other-form"),
        pytest.param("identity", framed(b"x" * (LIMIT + 1)), MessageTooLarge, id="too-large"),
        pytest.param("identity", b"\0\xff\xff\xff\xff", MessageTooLarge, id="known-by-its-prefix"),
    ],
)
def test_what_is_no_message(encoding, wire, error):
    assert ([], error) == read(MessageReader(LIMIT, encoding), wire)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_an_empty_message_may_be_marked_as_compressed(encoding):
    """grpc.aio accepts it, too."""
    assert read(MessageReader(LIMIT, encoding), packed(b"")) == ([b""], None)


def test_a_message_before_a_bad_one_counts():
    reader = MessageReader(LIMIT)
    assert ([b"good"], MessageTooLarge) == read(reader, framed(b"good") + framed(b"x" * 2 * LIMIT))


def test_an_unfinished_message_is_known():
    reader = MessageReader(LIMIT)
    assert read(reader, framed(b"abc")[:-1]) == ([], None)
    assert not reader.empty
    assert read(reader, b"c") == ([b"abc"], None)
    assert reader.empty


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([(b"a", b"1"), (b"a", b"2")], (("a", "1"), ("a", "2")), id="repeated"),
        pytest.param([(b"a-bin", b"AAE=")], (("a-bin", b"\0\1"),), id="padded"),
        pytest.param([(b"a-bin", b"AAE")], (("a-bin", b"\0\1"),), id="not-padded"),
        pytest.param([(b"a-bin", b"")], (("a-bin", b""),), id="empty"),
        pytest.param(
            [(b"a-bin", b"AAE,Ag==,AwQF")],
            (("a-bin", b"\0\1"), ("a-bin", b"\2"), ("a-bin", b"\3\4\5")),
            id="several-in-one",
        ),
        pytest.param(
            [(b"a-bin", b"AAE, Ag==")], (("a-bin", b"\0\1"), ("a-bin", b"\2")), id="and-a-space"
        ),
        pytest.param([(b"a", "ü".encode())], (("a", "ü"),), id="utf-8"),
        pytest.param([(b"a", b"\xff")], (("a", "\xff"),), id="latin-1"),
        pytest.param(
            [
                (b":path", b"/x"),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                (b"grpc-timeout", b"1S"),
                (b"user-agent", b"x"),
            ],
            (("user-agent", "x"),),
            id="not-the-transports-own",
        ),
    ],
)
def test_metadata_that_comes(headers, expected):
    assert expected == metadata_of(headers)


@pytest.mark.parametrize("value", [b"A", b"AA=A", b"?", b"\xff", b"AAE=,?"])
def test_binary_metadata_must_be_base64(value):
    with pytest.raises(WireError, match="a-bin"):
        metadata_of([(b"a-bin", value)])


@given(st.lists(st.tuples(st.just("a-bin"), st.binary())))
def test_binary_metadata_there_and_back(metadata):
    assert tuple(metadata) == metadata_of(headers_of(metadata))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("A", "x"),
        ("", "x"),
        ("a b", "x"),
        (":path", "x"),
        ("grpc-status", "0"),
        ("ü", "x"),
        ("a", "ü"),
        ("a", "x\ny"),
        ("a", "\0"),
    ],
)
def test_what_is_no_metadata(key, value):
    with pytest.raises(ValueError):
        headers_of([(key, value)])


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"1H", 3600),
        (b"2M", 120),
        (b"3S", 3),
        (b"4m", 4e-3),
        (b"5u", 5e-6),
        (b"6n", 6e-9),
        (b"0n", 0),
        (b"99999999H", 99999999 * 3600),
    ],
)
def test_timeouts(value, seconds):
    assert seconds == pytest.approx(timeout_seconds(value))


@pytest.mark.parametrize(
    "value", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b"1S ", b"\xb2S", b"1S\n"]
)
def test_what_is_no_timeout(value):
    with pytest.raises(WireError):
        timeout_seconds(value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain: text, with marks!", b"plain:%20text,%20with%20marks!"),
        ("100 %", b"100%20%25"),
        ("a\nb\0", b"a%0Ab%00"),
        ("grün ✓", b"gr%C3%BCn%20%E2%9C%93"),
        ("half a pair \ud800", b"half%20a%20pair%20?"),
    ],
)
def test_the_text_of_a_status(text, expected):
    assert expected == status_text(text)


@given(st.text())
def test_the_text_of_a_status_can_be_sent_and_read(text):
    sent = status_text(text)
    assert all(0x20 < byte < 0x7F for byte in sent)  # no space: forbidden at the ends of a value
    assert text == unquote(sent.decode())

"""Compressed request bodies: split anywhere, damaged, and larger than the limit."""

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.edge.rest.content_encoding import (
    BrokenBody,
    OversizedBody,
    UnknownEncoding,
    decompressor,
)

LIMIT = 2**20


def raw_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


ENCODERS = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "a list": ("identity, gzip,", gzip.compress),
    "two members": ("gzip", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
    "zlib": ("deflate", zlib.compress),
    "raw": ("deflate", raw_deflate),
}


async def decompressed(encoding: str, parts: list[bytes], limit: int = LIMIT) -> bytes:
    made = decompressor(encoding, limit)
    assert made is not None
    return b"".join(
        [await made.feed(part, last=i == len(parts) - 1) for i, part in enumerate(parts)]
    )


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("size", [1, 2, 7, 10**6])
async def test_every_cut(encoder, size):
    encoding, encode = ENCODERS[encoder]
    data = b'{"messages": [' + bytes(range(256)) * 50 + b"]}"
    sent = encode(data)
    parts = [sent[i : i + size] for i in range(0, len(sent), size)]
    assert await decompressed(encoding, [*parts, b""]) == data


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_no_body_stays_none(encoding):
    assert await decompressed(encoding, [b""]) == b""


@pytest.mark.parametrize("encoder", ENCODERS)
async def test_a_bomb_stops_at_the_limit(encoder):
    encoding, encode = ENCODERS[encoder]
    bomb = encode(bytes(50 * LIMIT))
    made = decompressor(encoding, LIMIT)
    with pytest.raises(OversizedBody):
        await made.feed(bomb, last=True)
    assert await decompressed(encoding, [encode(bytes(LIMIT))]) == bytes(LIMIT)


@pytest.mark.parametrize("encoder", ["gzip", "zlib", "raw"])
async def test_half_a_body_is_refused(encoder):
    encoding, encode = ENCODERS[encoder]
    sent = encode(b"hello " * 100)
    with pytest.raises(BrokenBody, match="truncated"):
        await decompressed(encoding, [sent[:-3]])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@given(data=st.binary(min_size=1, max_size=60))
async def test_garbage_is_refused_or_decompressed(encoding, data):
    with contextlib.suppress(BrokenBody, OversizedBody):
        assert isinstance(await decompressed(encoding, [data]), bytes)


async def test_more_after_deflate_is_refused():
    with pytest.raises(BrokenBody, match="after the end"):
        await decompressed("deflate", [zlib.compress(b"a") + b"b"])


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_plain_bodies_need_nothing(encoding):
    assert decompressor(encoding, LIMIT) is None


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip,deflate", "é" * 99])
def test_other_encodings_are_named(encoding):
    with pytest.raises(UnknownEncoding, match="gzip or deflate"):
        decompressor(encoding, LIMIT)

"""Which answers are compressed; neither compression nor decompression blocks the event loop."""

import asyncio
import gzip
import random
import struct
import zlib

import grpc
import grpc.aio
import pytest
from h2.settings import SettingCodes

from serving.h2grpc import compression
from tests.unit.h2grpc.raw_client import message

LONG = b"a message that is worth it, " * 20
NOISE = random.Random(0).randbytes(4000)
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress}
ALL = "identity,deflate,gzip"


def frames_in(data: bytes) -> list[tuple[int, bytes]]:
    """Return the messages with their compressed flag."""
    found = []
    while data:
        flag, size = struct.unpack_from(">BI", data)
        found.append((flag, data[5 : 5 + size]))
        data = data[5 + size :]
    return found


async def answer_of(client, path="/t.T/uu", body=LONG, encoding=None, accepted=ALL):
    """Return ``grpc-encoding``, then for each message whether it is compressed, and its text."""
    more = [("grpc-accept-encoding", accepted)] if accepted is not None else []
    sent = message(body)
    if encoding is not None:
        more.append(("grpc-encoding", encoding))
        packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(encoding)
        sent = message(packed(body), compressed=True) if packed else sent
    stream_id = client.begin(path, more)
    client.data(stream_id, sent, end=True)
    answer = await client.answer(stream_id)
    assert answer.status == 0, answer.details
    encoding_used = answer.headers.get("grpc-encoding")
    read = [
        (flag, UNPACK[encoding_used](data) if flag else data)
        for flag, data in frames_in(bytes(answer.data))
    ]
    return encoding_used, read


async def echo(request, context):
    return request


@pytest.mark.parametrize(
    ("encoding", "accepted", "expected"),
    [
        pytest.param("gzip", ALL, "gzip", id="gzip"),
        pytest.param("deflate", ALL, "deflate", id="deflate"),
        pytest.param("gzip", " gzip , deflate", "gzip", id="spaces"),
        pytest.param(None, ALL, None, id="only-accepts"),
        pytest.param("identity", ALL, None, id="identity"),
        pytest.param("gzip", "identity,deflate", None, id="cannot-read-what-it-writes"),
        pytest.param("gzip", None, None, id="does-not-say-what-it-reads"),
        pytest.param("gzip", "gzipped,xgzip", None, id="names-that-contain-it"),
    ],
)
async def test_answers_are_compressed_as_the_client_compresses(serve, encoding, accepted, expected):
    client = await (await serve(uu=echo)).raw()
    encoding_used, read = await answer_of(client, encoding=encoding, accepted=accepted)
    assert encoding_used == expected
    assert read == [(int(expected is not None), LONG)]


@pytest.mark.parametrize("default", [None, *grpc.Compression])
@pytest.mark.parametrize("of_handler", [None, *grpc.Compression])
@pytest.mark.parametrize("kind", ["uu", "us"])
async def test_the_handler_then_the_server_then_the_client_decide(serve, default, of_handler, kind):
    async def uu(request, context):
        if of_handler is not None:
            context.set_compression(of_handler)
        return request

    async def us(request, context):
        yield await uu(request, context)

    client = await (await serve({"compression": default}, uu=uu, us=us)).raw()
    decided = of_handler if of_handler is not None else default
    names = ("identity", "deflate", "gzip")
    expected = "gzip" if decided is None else names[decided]
    encoding_used, read = await answer_of(client, f"/t.T/{kind}", encoding="gzip")
    assert (encoding_used or "identity", read) == (expected, [(int(expected != "identity"), LONG)])
    encoding_used, read = await answer_of(client, f"/t.T/{kind}", accepted="identity")
    assert (encoding_used, read) == (None, [(0, LONG)])


async def test_what_is_not_worth_it_is_sent_as_it_is(serve):
    async def us(request, context):
        for size in (0, 1, compression.MIN_BYTES - 1, compression.MIN_BYTES):
            await context.write(b"x" * size)
        await context.write(NOISE)
        context.disable_next_message_compression()
        await context.write(LONG)
        await context.write(LONG)

    client = await (await serve(us=us)).raw()
    encoding_used, read = await answer_of(client, "/t.T/us", encoding="gzip")
    assert encoding_used == "gzip"
    assert [flag for flag, _ in read] == [0, 0, 0, 1, 0, 0, 1]
    assert [data for _, data in read][-3:] == [NOISE, LONG, LONG]


async def test_the_next_message_alone_is_sent_as_it_is_also_if_it_has_to_wait(serve):
    big = LONG * 2000

    async def us(request, context):
        context.disable_next_message_compression()
        for body in (big, big, LONG):
            await context.write(body)

    client = await (await serve(us=us)).raw({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    _, read = await answer_of(client, "/t.T/us", encoding="gzip")
    assert read == [(0, big), (1, big), (1, LONG)]


async def test_compression_is_not_set_when_headers_are_out(serve):
    async def uu(request, context):
        await context.send_initial_metadata((("a", "b"),))
        with pytest.raises(RuntimeError, match="initial metadata"):
            context.set_compression(grpc.Compression.Deflate)
        return request

    client = await (await serve(uu=uu)).raw()
    assert await answer_of(client, encoding="gzip") == ("gzip", [(1, LONG)])


@pytest.mark.parametrize("method", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_clients_of_grpc_aio_read_what_is_compressed(serve, method):
    bodies = [b"", b"x", LONG, NOISE, LONG * 5000]

    async def ss(requests, context):
        async for request in requests:
            yield request

    stand = await serve(ss=ss)
    async with stand.channel(compression=method) as channel:
        call = channel.stream_stream("/t.T/ss")(iter(bodies))
        assert [each async for each in call] == bodies


class Turns:
    """Counts turns of the event loop within the block."""

    def __init__(self):
        self.count = 0

    async def run(self):
        while True:
            await asyncio.sleep(0)
            self.count += 1


@pytest.fixture
async def turns():
    turns = Turns()
    task = asyncio.create_task(turns.run())
    yield turns
    task.cancel()


async def test_the_loop_turns_while_a_large_answer_is_compressed(serve, turns):
    size = 64 * compression.COMPRESS_CHUNK
    between = []

    async def us(request, context):
        before = turns.count
        await context.write(b"x" * size)
        between.append(turns.count - before)

    client = await (await serve(us=us)).raw()
    _, read = await answer_of(client, "/t.T/us", encoding="gzip")
    assert read == [(1, b"x" * size)]
    assert between[0] >= 64


@pytest.mark.parametrize(
    ("count", "size"),
    [pytest.param(1, 32, id="one-large"), pytest.param(32, 1, id="many")],
)
async def test_the_loop_turns_while_requests_are_unpacked(serve, turns, count, size):
    body = b"\0" * (size * compression.DECOMPRESS_CHUNK)
    between = []

    async def su(requests, context):
        await asyncio.sleep(0.05)  # all of it is there
        before = turns.count
        read = [request async for request in requests]
        between.append(turns.count - before)
        assert read == [body] * count
        return b""

    client = await (await serve({"max_message_bytes": len(body)}, su=su)).raw()
    stream_id = client.begin("/t.T/su", [("grpc-encoding", "gzip")])
    for _ in range(count):
        client.data(stream_id, message(gzip.compress(body), compressed=True))
    client.h2.end_stream(stream_id)
    client.send()
    assert (await client.answer(stream_id)).status == 0
    assert between[0] >= 32

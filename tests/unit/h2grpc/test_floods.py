"""Limits on the work that a client causes, in one turn of the event loop and in total.

No test measures time: turns are limited by a clock that the tests advance.
"""

import asyncio
import contextlib
import struct
from itertools import pairwise

import pytest
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from serving.h2grpc import budget, http2, output, turns
from serving.h2grpc import connection as module
from serving.h2grpc.connection import Connection
from serving.h2grpc.server import Server
from tests.support.waiting import PATIENCE, eventually
from tests.unit.h2grpc.conftest import methods
from tests.unit.h2grpc.raw_client import ClientH2, message, request
from tests.unit.h2grpc.transport import Transport

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
GET = b"\x82\x86\x84"  # GET, http, /
ENHANCE_YOUR_CALM = 11
MANY = budget.MAX_UNITS + 200
"""A number of frames that exceeds any budget."""


async def uu(request, context):
    return b"re:" + request


async def uu_waits(request, context):
    await asyncio.Event().wait()


async def ss(requests, context):
    async for each in requests:
        yield each


async def us(request, context):
    for _ in range(int(request)):
        await context.write(b"x")


@pytest.fixture
async def stand(serve):
    return await serve(uu=uu, uu_waits=uu_waits, us=us)


@pytest.fixture(autouse=True)
def no_surprise(monkeypatch):
    """Check that no error is logged, regardless of what a client sends."""
    failed = []

    class Log:
        info = warning = staticmethod(lambda *args, **kwargs: None)
        error = exception = staticmethod(lambda *args, **kwargs: failed.append((args, kwargs)))

    monkeypatch.setattr(module, "log", Log())
    yield
    assert failed == []


@pytest.fixture
def no_refill(monkeypatch):
    """Disable refills by time, so that the speed of the machine does not matter."""
    monkeypatch.setattr(budget, "REFILL_PER_SECOND", 0)


def headers(stream_id, block, *flags):
    frame = HeadersFrame(stream_id, block)
    frame.flags |= set(flags)
    return frame.serialize()


def whole(stream_id, block=GET):
    return headers(stream_id, block, "END_HEADERS", "END_STREAM")


def block_of(path, *, more=()):
    """Return a call's headers, encoded without the dynamic table."""
    client = ClientH2()
    client.encoder.header_table_size = 0
    return client.encoder.encode(request(path, more))[1:]  # without the table size update


class Sink:
    """A client without protocol state, which sends bytes and counts received frames."""

    def __init__(self, reader, writer):
        self.resets = {}
        """Number of RST_STREAM frames by stream."""
        self.codes = []
        """Error codes of those frames."""
        self.pongs = 0
        self.goaway = None
        self._reader, self._writer = reader, writer
        self._tail = b""

    @classmethod
    async def connect(cls, port):
        sink = cls(*await asyncio.open_connection("127.0.0.1", port))
        sink.send(PREFACE)
        await sink.ping()
        return sink

    def send(self, data):
        self._writer.write(data)

    async def step(self):
        """Read once, and return whether data arrived."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data = await self._reader.read(2**16)
        frames = self._tail + data
        while len(frames) >= 9 and len(frames) >= 9 + int.from_bytes(frames[:3]):
            end = 9 + int.from_bytes(frames[:3])
            self._take_in(frames[3], int.from_bytes(frames[5:9]), frames[9:end])
            frames = frames[end:]
        self._tail = frames
        return bool(data)

    def _take_in(self, kind, stream_id, body):
        if kind == 3:
            self.resets[stream_id] = self.resets.get(stream_id, 0) + 1
            self.codes.append(int.from_bytes(body))
        elif kind == 6:
            self.pongs += 1
        elif kind == 7:
            self.goaway = int.from_bytes(body[4:8])

    async def until(self, so):
        async with asyncio.timeout(PATIENCE):
            while not so():
                assert await self.step(), "the server hung up"

    async def ping(self):
        before = self.pongs
        self.send(PingFrame(0, b"12345678").serialize())
        await self.until(lambda: self.pongs > before)

    async def hung_up(self):
        async with asyncio.timeout(PATIENCE):
            while await self.step():
                pass
        self._writer.close()


def numbered(make):
    return lambda: b"".join(make(stream_id) for stream_id in range(1, 2 * MANY, 2))


def repeated(*frames):
    return lambda: b"".join(frame.serialize() for frame in frames) * 2 * MANY


def unknown():
    return ExtensionFrame(type=0xB, stream_id=0, flag_byte=0, body=b"")


CALL = block_of("/t.T/uu_waits")
UU, NONE = block_of("/t.T/uu"), block_of("/t.T/none")
OPENED = headers(1, CALL, "END_HEADERS")
RESET = RstStreamFrame(1, error_code=8)

FLOODS = {
    "headers-of-http": (b"", numbered(whole)),
    "headers-without-a-message": (b"", numbered(lambda n: whole(n, UU))),
    "headers-of-no-method": (b"", numbered(lambda n: whole(n, NONE))),
    "continuations": (
        b"",
        numbered(
            lambda n: (
                headers(n, GET[:1], "END_STREAM")
                + ContinuationFrame(n, GET[1:], flags=["END_HEADERS"]).serialize()
            )
        ),
    ),
    "headers-and-reset": (
        b"",
        numbered(
            lambda n: headers(n, CALL, "END_HEADERS") + RstStreamFrame(n, error_code=8).serialize()
        ),
    ),
    "pings": (b"", repeated(PingFrame(0, b"12345678"))),
    "pongs": (b"", repeated(PingFrame(0, b"12345678", flags=["ACK"]))),
    "settings": (b"", repeated(SettingsFrame(0))),
    "settings-that-change": (
        b"",
        repeated(*(SettingsFrame(0, settings={4: 65_535 + n}) for n in range(2))),
    ),
    "settings-acknowledged": (b"", repeated(SettingsFrame(0, flags=["ACK"]))),
    "priorities": (b"", numbered(lambda n: PriorityFrame(n, depends_on=0).serialize())),
    "window-updates": (b"", repeated(WindowUpdateFrame(0, window_increment=1))),
    "unknown": (b"", repeated(unknown())),
    "goaways": (b"", repeated(GoAwayFrame(0))),
    "empty-data": (OPENED, repeated(DataFrame(1))),
    "tiny-data": (
        OPENED + DataFrame(1, struct.pack(">BI", 0, 2**20)).serialize(),
        repeated(DataFrame(1, b"x")),
    ),
    "tiny-messages-in-pieces": (OPENED, repeated(DataFrame(1, b"\0"))),
    "padding": (OPENED, repeated(DataFrame(1, b"", pad_length=0, flags=["PADDED"]))),
    "resets-of-a-closed-stream": (OPENED + RESET.serialize(), repeated(RESET)),
    "data-of-a-closed-stream": (OPENED + RESET.serialize(), repeated(DataFrame(1))),
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.usefixtures("no_refill")
async def test_a_flood_ends_its_connection_and_no_other(stand, name):
    opening, flood = FLOODS[name]
    other = await stand.raw()
    waits = other.call("/t.T/uu_waits")
    client = await Sink.connect(stand.port)
    client.send(opening + flood())
    await client.hung_up()
    assert client.goaway == ENHANCE_YOUR_CALM
    await eventually(lambda: len(stand.server.connections) == 1)
    assert (await other.answer(other.call())).status == 0
    assert not other.answers[waits].over


@pytest.mark.parametrize("kind", ["pings", "settings"])
@pytest.mark.usefixtures("no_refill")
async def test_a_flood_whose_answers_are_not_read_ends_the_connection(stand, kind):
    client = await stand.raw(buffer=4096)
    await client.ping()
    with contextlib.suppress(ConnectionError):
        client.send(FLOODS[kind][1]())
        await client.drained()
    await stand.deserted()


@pytest.mark.usefixtures("no_refill")
async def test_sent_messages_pay_for_the_frames_that_acknowledge_them(stand):
    """Some clients send WINDOW_UPDATE and PING for each message."""
    client = await stand.raw()
    await client.ping()
    ack = WindowUpdateFrame(0, window_increment=1).serialize()
    ping = PingFrame(0, b"12345678").serialize()
    for _ in range(2 * budget.MAX_UNITS // 500):
        answer = await client.answer(client.call("/t.T/us", b"500"))
        assert len(answer.messages) == 500
        client.send((ack + ping) * 500)
        await client.ping()


@pytest.mark.usefixtures("no_refill")
async def test_good_calls_cost_nothing(stand):
    client = await stand.raw()
    await client.ping()
    for _ in range(budget.MAX_UNITS // 100 + 2):
        calls = [client.call() for _ in range(100)]
        for call in calls:
            assert (await client.answer(call)).status == 0


async def test_time_fills_a_budget():
    mine = budget.Budget(100.0)
    mine.left = -1
    assert mine.overdrawn(100.0)
    assert not mine.overdrawn(100.0 + 2 / budget.REFILL_PER_SECOND)
    assert mine.left == 1
    mine.left = -1
    assert not mine.overdrawn(10**6)
    assert mine.left <= budget.MAX_UNITS


# -- one turn ---------------------------------------------------------------------------------


class Hand:
    """A clock that advances by a step at each call."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def make():
    """Create connections to a server with a manual clock."""

    async def made(step, count=1):
        server = Server()
        server.add_generic_rpc_handlers((methods(uu=uu, uu_waits=uu_waits),))
        server.clock = Hand(step)
        server.turns = turns.Turns(server.clock)
        found = []
        for _ in range(count):
            connection = Connection(server)
            transport = Transport(connection)
            connection.connection_made(transport)
            connection.data_received(PREFACE)
            await eventually(lambda connection=connection: connection not in server.turns)
            transport.written.clear()
            found.append((connection, transport))
        server.clock.now += 10.0
        return found

    return made


def pings(count):
    return PingFrame(0, b"12345678").serialize() * count


def pongs(transport):
    answer = PingFrame(0, b"12345678", flags=["ACK"]).serialize()
    return transport.written.count(answer)


@pytest.mark.parametrize(
    ("step", "count", "most"),
    [
        pytest.param(turns.SLICE / 1000, 500, module._MAX_FRAMES, id="a-fast-machine-by-frames"),
        pytest.param(turns.SLICE / 4, 500, 5, id="a-slow-machine-by-time"),
        pytest.param(turns.SLICE * 4, 20, 1, id="one-frame-at-least"),
    ],
)
async def test_one_write_is_read_in_slices(make, step, count, most):
    ((connection, transport),) = await make(step)
    connection.data_received(pings(count))
    assert transport.paused  # its further data stays in its socket
    seen = []
    while connection in connection.server.turns:
        before = pongs(transport)
        await asyncio.sleep(0)
        seen.append(pongs(transport) - before)
    await asyncio.sleep(0)
    assert pongs(transport) == count
    assert not transport.paused
    assert max(seen) == most
    transport.close()


async def test_answers_that_are_not_read_are_bounded_in_bytes(make, monkeypatch):
    """The budget, which time refills, does not limit them."""
    monkeypatch.setattr(budget, "MAX_UNITS", 10**9)
    monkeypatch.setattr(output, "MAX_UNSENT", 2**14)
    ((connection, transport),) = await make(0.0)
    connection.pause_writing()
    connection.data_received(pings(2**14 // 17 + module._MAX_FRAMES))
    await eventually(lambda: transport.closing)
    assert len(transport.written) <= 2**14


async def test_other_connections_read_between_the_slices(make):
    flooded, *others = await make(turns.SLICE / 4, count=6)
    flooded[0].data_received(pings(1000))
    for connection, _ in others:
        connection.data_received(pings(1))
    turns_taken = 0
    while any(pongs(transport) < 1 for _, transport in others):
        await asyncio.sleep(0)
        turns_taken += 1
    assert turns_taken <= 6
    assert pongs(flooded[1]) < 100
    for _, transport in (flooded, *others):
        transport.close()


async def test_connections_that_flood_are_served_in_turn(make):
    connections = await make(turns.SLICE / 4, count=5)
    for connection, _ in connections:
        connection.data_received(pings(1000))
    for _ in range(200):
        await asyncio.sleep(0)
    counts = sorted(pongs(transport) for _, transport in connections)
    assert counts[0] > 0
    assert counts[-1] - counts[0] <= 20
    for _, transport in connections:
        transport.close()


async def test_a_frame_that_takes_long_makes_room_for_all_else(make):
    """The next frame waits as long as it took."""
    ((connection, transport),) = await make(1.0)
    connection.data_received(pings(3))
    loop = asyncio.get_running_loop()
    for _ in range(10):
        await asyncio.sleep(0)
    assert pongs(transport) <= 2
    assert connection in connection.server.turns
    assert loop.time() < 1e9
    transport.close()


async def test_a_lost_connection_is_read_no_further(make):
    ((connection, transport),) = await make(turns.SLICE)
    connection.data_received(pings(500))
    transport.close()
    await eventually(lambda: connection not in connection.server.turns)
    assert pongs(transport) < 500
    assert not connection.server.connections


@pytest.mark.parametrize("clients", [1, 6])
async def test_calls_of_lost_clients_are_cancelled_a_few_at_a_time(make, clients):
    """Also if many connections are lost in one turn of the event loop."""
    connections = await make(0.0, count=clients)
    server = connections[0][0].server
    count = 4 * server.cancel_limit.limit
    data = b"".join(
        headers(n, CALL, "END_HEADERS") + DataFrame(n, message(b"x")).serialize()
        for n in range(1, 2 * count, 2)
    )
    for connection, _ in connections:
        connection.data_received(data)
    await eventually(lambda: all(len(connection.calls) == count for connection, _ in connections))
    for _, transport in connections:
        transport.close()
    left = [clients * count]
    while left[-1]:
        await asyncio.sleep(0)
        left.append(sum(len(connection.calls) for connection, _ in connections))
    # Two checks of this task may span parts of two iterations.
    assert max(before - after for before, after in pairwise(left)) <= 2 * server.cancel_limit.limit
    await eventually(lambda: not server.tasks)


# -- streams ----------------------------------------------------------------------------------


async def test_streams_over_the_limit_are_refused_and_the_others_go_on(serve):
    stand = await serve({"max_streams": 3}, uu=uu, uu_waits=uu_waits)
    client = await stand.raw()
    await client.ping()
    assert client.h2.remote_settings.max_concurrent_streams == 3
    client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
    client.h2.remote_settings.acknowledge()
    waiting = [client.call("/t.T/uu_waits") for _ in range(3)]
    refused = client.call("/t.T/uu", more=[("a-new", "field-of-the-table")])
    answer = await client.answer(refused)
    assert (answer.reset, answer.headers) == (7, {})  # REFUSED_STREAM
    client.reset(waiting[0])
    # The header table is still in sync with the client's.
    answer = await client.answer(client.call("/t.T/uu", more=[("a-new", "field-of-the-table")]))
    assert answer.status == 0
    assert not client.answers[waiting[1]].over


async def test_streams_are_refused_without_a_look_at_their_headers(serve, monkeypatch):
    read = []
    stand = await serve({"max_streams": 1}, uu=uu, uu_waits=uu_waits)
    client = await Sink.connect(stand.port)
    client.send(OPENED)
    await client.ping()
    monkeypatch.setattr(module, "Call", lambda *args: read.append(args))
    for n in range(3, 40, 2):
        client.send(whole(n, CALL))
    await client.ping()
    assert client.codes == [7] * 19
    assert read == []


@pytest.mark.parametrize("stream_id", [2, 1])
async def test_a_stream_number_that_is_wrong_stays_an_error_over_the_limit(serve, stream_id):
    stand = await serve({"max_streams": 1}, uu=uu, uu_waits=uu_waits)
    client = await stand.raw()
    client.call("/t.T/uu")
    await client.ping()
    client.call("/t.T/uu_waits")
    await client.ping()
    client.send(whole(stream_id, CALL))
    await client.hung_up()
    assert client.goaway in {1, 5}  # PROTOCOL_ERROR, STREAM_CLOSED


async def test_a_stream_is_reset_once(stand):
    client = await Sink.connect(stand.port)
    streams = range(1, 20, 2)
    for n in streams:
        client.send(headers(n, NONE, "END_HEADERS"))
    await client.until(lambda: len(client.resets) == len(streams))
    for n in streams:
        client.send(DataFrame(n, b"x").serialize() * 5)
        client.send(whole(n, NONE))
    await client.ping()
    assert client.resets == dict.fromkeys(streams, 1)


# -- headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [3, 60])
async def test_a_block_of_headers_is_bounded_before_it_is_decoded(stand, monkeypatch, parts):
    decoded = []
    monkeypatch.setattr(http2._Decoder, "decode", lambda *args, **kwargs: decoded.append(args))
    client = await stand.raw()
    piece = b"\x10\x01a\x7f\x00" + b"x" * 16_000  # a field with a value of 127 bytes, and more
    client.send(headers(1, piece[:16_000]))
    for _ in range(parts):
        client.send(ContinuationFrame(1, piece[:16_000]).serialize())
    await client.hung_up()
    assert client.goaway == ENHANCE_YOUR_CALM
    assert decoded == []


@pytest.mark.parametrize(("updates", "code"), [(2, None), (3, 1), (16_000, 1)])
async def test_changes_of_the_table_of_headers_are_two_a_block(stand, updates, code):
    """RFC 7541, section 4.2; each byte of such a block is one change."""
    client = await Sink.connect(stand.port)
    client.send(whole(1, b"\x20" * updates + GET))
    if code is None:
        await client.ping()
        assert client.goaway is None
    else:
        await client.hung_up()
        assert client.goaway in {code, 9}  # COMPRESSION_ERROR


# -- settings: RFC 9113, section 6.5.2 ----------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value", "error"),
    [
        pytest.param(2, 2, 1, id="enable-push-2"),
        pytest.param(4, 2**31, 3, id="window-of-2^31"),
        pytest.param(4, 2**32 - 1, 3, id="window-of-2^32"),
        pytest.param(5, 2**14 - 1, 1, id="frame-size-small"),
        pytest.param(5, 0, 1, id="frame-size-0"),
        pytest.param(5, 2**24, 1, id="frame-size-large"),
        pytest.param(5, 2**32 - 1, 1, id="frame-size-largest"),
    ],
)
async def test_a_setting_out_of_range_ends_the_connection(stand, code, value, error):
    client = await stand.raw()
    await client.ping()
    client.send(SettingsFrame(0, settings={code: value}).serialize())
    await client.hung_up()
    assert client.goaway == error


@pytest.mark.parametrize(
    ("code", "value"),
    [
        *((1, 0), (1, 2**32 - 1), (2, 0), (2, 1), (3, 0), (4, 0), (4, 2**31 - 1), (5, 2**14)),
        *((5, 2**24 - 1), (6, 0), (6, 2**32 - 1), (0x10, 7), (0xFFFF, 7)),
    ],
)
async def test_settings_in_range_are_taken(stand, code, value):
    client = await stand.raw()
    await client.ping()
    client.send(SettingsFrame(0, settings={code: value}).serialize())
    await client.ping()
    client.send(SettingsFrame(0, settings={4: 65_535}).serialize())
    assert (await client.answer(client.call())).status == 0


async def test_settings_that_nobody_knows_are_not_kept(stand):
    client = await stand.raw()
    await client.ping()
    for begin in range(0x100, 0x2000, 0x400):
        values = struct.pack(">HI", begin, 1)
        values = b"".join(struct.pack(">HI", code, 1) for code in range(begin, begin + 0x400))
        frame = len(values).to_bytes(3, "big") + b"\x04\0" + b"\0\0\0\0" + values
        client.send(frame)
    await client.ping()
    assert len(stand.connection.h2.remote_settings) < 10


async def test_a_client_that_is_hung_up_on_can_read_why(stand):
    """It continues to send; closing the socket at once would discard the answer."""
    client = await Sink.connect(stand.port)
    while not stand.connection.lost:
        client.send(FLOODS["settings"][1]())
        await asyncio.sleep(0)
    client.send(FLOODS["settings"][1]())
    await client.hung_up()
    assert client.goaway == ENHANCE_YOUR_CALM


# -- memory over all connections ----------------------------------------------------------------


async def test_calls_without_a_message_are_bounded_over_all_connections(serve):
    stand = await serve({"max_pending_bytes": 2**14}, uu=uu, uu_waits=uu_waits)
    clients = [await stand.raw() for _ in range(3)]
    begun = [clients[0].begin(), clients[1].begin(), clients[1].begin(), clients[2].begin()]
    for client in clients:
        await client.ping()
    answer = await clients[2].answer(clients[2].call())
    assert (answer.status, answer.details) == (
        8,
        "incomplete%20requests%20use%20too%20much%20memory",
    )
    clients[0].data(begun[0], message(b"x"), end=True)
    assert (await clients[0].answer(begun[0])).messages == [b"re:x"]
    assert (await clients[2].answer(clients[2].call())).status == 0
    clients[1].abort()
    await eventually(lambda: stand.server.pending.used == 2**12)


async def test_unfinished_messages_are_bounded_over_all_connections(serve):
    stand = await serve({"max_pending_bytes": 2**15}, uu=uu, ss=ss)
    clients = [await stand.raw() for _ in range(2)]
    waits, refused = (client.begin("/t.T/ss") for client in clients)
    for client in clients:
        await client.ping()
    await eventually(lambda: stand.server.pending.used == 0)  # both handlers have begun
    half = struct.pack(">BI", 0, 2**17) + bytes(2**14 - 5)
    for client, call in zip(clients, (waits, refused), strict=True):
        client.data(call, half)
        await client.ping()
    assert stand.server.pending.used == 2**15
    clients[1].data(refused, b"x")
    assert (await clients[1].answer(refused)).status == 8
    await eventually(lambda: stand.server.pending.used == 2**14)
    assert not clients[0].answers[waits].over
    assert (await clients[1].answer(clients[1].call())).status == 0


async def test_messages_that_are_whole_leave_nothing_pending(stand):
    client = await stand.raw()
    for size in (0, 1, 10**4):
        answer = await client.answer(client.call(body=b"x" * size))
        assert answer.status == 0
    assert stand.server.pending.used == 0

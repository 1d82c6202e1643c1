"""One connection, frame by frame: flow control, floods, protocol errors."""

import asyncio
import contextlib
from itertools import pairwise

import pytest
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from serving.h2grpc import budget, keepalive, output
from serving.h2grpc import connection as module
from serving.h2grpc.connection import Connection
from serving.h2grpc.server import Server
from tests.support.waiting import eventually
from tests.unit.h2grpc.conftest import methods
from tests.unit.h2grpc.raw_client import (
    PATIENCE,
    Answers,
    ClientH2,
    RawClient,
    message,
    messages_in,
    request,
)
from tests.unit.h2grpc.transport import Transport

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WIDE = {SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}


class Echo:
    """Methods for most tests."""

    def __init__(self):
        self.go_on = asyncio.Event()
        self.waiting = 0

    async def uu(self, request, context):
        return b"re:" + request

    async def uu_waits(self, request, context):
        self.waiting += 1
        try:
            await self.go_on.wait()
        finally:
            self.waiting -= 1
        return b"re:" + request

    async def us(self, request, context):
        """Yield a number of messages of a size, each with a different letter."""
        count, size = map(int, request.split())
        for n in range(count):
            await context.write(bytes([65 + n % 26]) * size)

    async def su(self, requests, context):
        return b"%d" % sum([len(request) async for request in requests])

    async def su_waits(self, requests, context):
        await self.go_on.wait()

    async def us_endless(self, request, context):
        while True:
            await context.write(request * 1000)

    @property
    def methods(self):
        names = ("uu", "uu_waits", "us", "su", "su_waits", "us_endless")
        return {name: getattr(self, name) for name in names}


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
async def stand(serve, echo):
    return await serve(**echo.methods)


@pytest.fixture(autouse=True)
def no_surprise(monkeypatch):
    """Check that no error is logged, regardless of what a client sends."""
    failed = []

    class Log:
        info = warning = staticmethod(lambda *args, **kwargs: None)
        error = exception = staticmethod(lambda *args, **kwargs: failed.append(args))

    monkeypatch.setattr(module, "log", Log())
    yield
    assert failed == []


async def lives(stand) -> None:
    """Check on another connection that the server still serves."""
    client = await stand.raw()
    assert (await client.answer(client.call())).status == 0
    await client.close()


async def raw_bytes(stand, *data: bytes, end: bool = False) -> bytes:
    """Send bytes; returns all data until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    for each in data:
        writer.write(each)
    if end:
        writer.write_eof()
    try:
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                return await reader.read()
    finally:
        writer.close()
    return b""


def settings_frame(**values: int) -> bytes:
    codes = {getattr(SettingCodes, name): value for name, value in values.items()}
    return SettingsFrame(0, settings=codes).serialize()


# -- clients that do not use gRPC -----------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx",
        b"GET /",
    ],
)
async def test_http_1_gets_a_text(stand, data):
    received = await raw_bytes(stand, data)
    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"gRPC" in received.partition(b"\r\n\r\n")[2]
    await stand.deserted()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="tls"),
        pytest.param(b"\0" * 100, id="zeros"),
        pytest.param(PREFACE[:10] + b"?", id="bad-preface"),
        pytest.param(PREFACE + b"\xff" * 100, id="garbage-after-the-preface"),
        pytest.param(PREFACE + DataFrame(1, b"x").serialize(), id="no-settings"),
        pytest.param(PREFACE + b"\0\0\3\1\4\0\0\0\1\xff\xff\xff", id="bad-hpack"),
        pytest.param(PREFACE + settings_frame(MAX_FRAME_SIZE=1), id="bad-setting"),
        pytest.param(PREFACE + settings_frame(INITIAL_WINDOW_SIZE=2**31), id="bad-window"),
        pytest.param(PREFACE + b"\0\0\4\3\0\0\0\0\0\0\0\0\0", id="reset-of-stream-0"),
        pytest.param(PREFACE + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0", id="window-update-of-0"),
        pytest.param(PREFACE + b"\0\0\2\0\x08\0\0\0\1\x09x", id="bad-padding"),
        pytest.param(PREFACE + b"\xff\0\0\4\0\0\0\0\0", id="announces-a-long-frame"),
    ],
)
async def test_garbage_ends_its_connection_only(stand, data):
    await raw_bytes(stand, data)
    await stand.deserted()
    await lives(stand)


@pytest.mark.parametrize("data", [b"", PREFACE[:5], PREFACE, PREFACE + b"\0\0"])
async def test_clients_that_disconnect_early(stand, data):
    await raw_bytes(stand, data, end=True)
    await stand.deserted()


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ([(":method", "GET")], "405"),
        ([("content-type", "application/json")], "415"),
        ([("content-type", "application/grpc-web")], "415"),
        ([("content-type", "")], "415"),
        ([("content-type", "application/grpc")], "200"),
        ([("content-type", "application/grpc+proto")], "200"),
        ([("content-type", "application/grpc;v=1")], "200"),
    ],
)
@pytest.mark.parametrize("end", [True, False])
async def test_other_requests_over_http_2(stand, more, status, end):
    client = await stand.raw()
    stream_id = client.begin(more=more, end=end)
    if status == "200" and not end:
        client.data(stream_id, message(b"x"), end=True)
    answer = await client.answer(stream_id)
    assert status == answer.headers[":status"]
    assert (await client.answer(client.call())).status == 0
    await stand.idle()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param([("te", "gzip")], id="te"),
        pytest.param([("connection", "close")], id="connection"),
        pytest.param([("Upper", "x")], id="upper-case"),
        pytest.param([("a", "x\ny")], id="line-feed"),
        pytest.param([("a", "\0")], id="nul"),
        pytest.param([("host", "other")], id="host"),
        pytest.param([(":status", "200")], id="response-header"),
        pytest.param([("", "x")], id="no-name"),
    ],
)
async def test_malformed_headers_end_their_own_call_only(stand, echo, more):
    client = await stand.raw()
    other = client.call("/t.T/uu_waits")
    bad = client.begin(more=more)
    assert (await client.answer(bad)).reset == 1  # PROTOCOL_ERROR
    echo.go_on.set()
    assert (await client.answer(other)).status == 0
    await stand.idle()


async def test_malformed_trailers_cancel_their_call(stand, echo):
    client = await stand.raw()
    stream_id = client.begin("/t.T/uu_waits")
    client.data(stream_id, message(b"x"))
    await client.ping()
    assert echo.waiting == 1
    trailers = HeadersFrame(stream_id, client.h2.encoder.encode([("a", "b")]))
    trailers.flags |= {"END_HEADERS"}  # but not END_STREAM
    client.send(trailers.serialize())
    assert (await client.answer(stream_id)).reset == 1
    await stand.idle()
    assert echo.waiting == 0


# -- bounds on headers ----------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2**10, 2**16])
async def test_headers_over_the_limit(serve, echo, limit):
    stand = await serve({"max_metadata_bytes": limit}, **echo.methods)
    client = await stand.raw()
    within = [("a", "x" * (limit * 3 // 4 - 500))]
    assert (await client.answer(client.call(more=within))).status == 0
    over = [("a", "x" * limit)]
    answer = await client.answer(client.call(more=over))
    assert answer.status == 8  # RESOURCE_EXHAUSTED
    assert str(limit) in answer.details
    assert (await client.answer(client.call())).status == 0
    client.call(more=[("a", "x" * limit), ("b", "x" * limit)])
    await client.hung_up()
    assert client.goaway is not None
    await stand.deserted()


async def test_a_header_bomb(stand):
    """The header block is small, and large when it is decoded."""
    client = await stand.raw()
    client.begin("/t.T/su", [("a", "x" * 3000)])
    block = client.h2.encoder.encode([("a", "x" * 3000)] * 20_000)
    frame = HeadersFrame(3, block[:16_000])
    frame.flags |= {"END_HEADERS"}
    client.send(frame.serialize())
    await client.hung_up()
    await stand.deserted()


async def test_continuations_without_end(stand):
    client = await stand.raw()
    client.send(HeadersFrame(1, b"").serialize())
    for _ in range(100):
        client.send(ContinuationFrame(1, b"").serialize())
    await client.hung_up()
    assert client.goaway is not None
    await stand.deserted()


# -- floods ---------------------------------------------------------------------------------


async def test_many_pings_are_answered_one_by_one(stand):
    client = await stand.raw()
    client.send(PingFrame(0, b"12345678").serialize() * (budget.MAX_UNITS - 100))
    await client.until(lambda: client.answers.pongs == budget.MAX_UNITS - 100)


async def test_settings_again_and_again(stand):
    client = await stand.raw()
    for n in range(500):
        client.send(settings_frame(HEADER_TABLE_SIZE=n % 2 * 2**30, MAX_FRAME_SIZE=2**24 - 1))
    await client.ping()
    h2 = stand.connection.h2
    assert len(h2.encoder.table_size_changes) <= 2
    assert h2.encoder.header_table_size <= 4096
    assert h2.max_outbound_frame_size == 2**14
    client.h2.decoder.max_allowed_table_size = 2**30
    assert (await client.answer(client.call())).status == 0


async def test_calls_that_are_only_begun_and_cancelled(stand, monkeypatch):
    monkeypatch.setattr(module, "_PREMATURE_AGE", PATIENCE)
    client = await stand.raw()
    with contextlib.suppress(ConnectionError):
        for _ in range(1100):
            client.reset(client.begin("/t.T/su"))
        await client.hung_up()
    await client.hung_up()
    assert client.goaway == 11  # ENHANCE_YOUR_CALM
    await stand.deserted()
    await lives(stand)


async def test_calls_reset_by_the_server_for_a_client_error_count_too(stand):
    """The flood of CVE-2025-8671."""
    client = await stand.raw()
    for _ in range(1100):
        stream_id = client.begin("/t.T/su")
        client.send(WindowUpdateFrame(stream_id, window_increment=2**31 - 1).serialize())
    await client.hung_up()
    assert client.goaway == 11
    await stand.deserted()


async def test_cancelled_calls_between_good_ones_are_no_flood(stand, monkeypatch):
    monkeypatch.setattr(module, "_MAX_PREMATURE", 20)
    monkeypatch.setattr(module, "_PREMATURE_AGE", PATIENCE)  # so that they count on a slow machine
    client = await stand.raw()
    for _ in range(100):
        stream_id = client.begin("/t.T/su")
        await client.ping()
        client.reset(stream_id)
        assert (await client.answer(client.call())).status == 0
    await stand.idle()


async def test_cancelled_in_the_same_bytes_as_begun(stand):
    """The number of streams is so high that h2 removes some before their events are handled."""
    client = await stand.raw()
    await client.ping()
    raw = b""
    for _ in range(400):
        stream_id = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream_id, request("/t.T/su"))
        client.h2.reset_stream(stream_id, 8)
        raw += client.h2.data_to_send()
    client.send(raw)
    assert (await client.answer(client.call())).status == 0
    await stand.idle()


async def test_hundreds_of_calls_at_once_some_cancelled(stand, echo):
    client = await stand.raw()
    for _ in range(6):
        echo.go_on.clear()
        streams = [client.call("/t.T/uu_waits", b"%d" % k) for k in range(350)]
        await client.ping()
        await eventually(lambda: echo.waiting == 350)
        for stream_id in streams[::2]:
            client.reset(stream_id)
        await client.ping()
        await eventually(lambda: echo.waiting == 175)
        assert len(stand.connection.calls) == 175
        echo.go_on.set()
        for k, stream_id in enumerate(streams):
            if k % 2:
                answer = await client.answer(stream_id)
                assert (0, [b"re:%d" % k]) == (answer.status, answer.messages)
        await stand.idle()
        assert len(stand.connection.h2.streams) <= 2 * 350 + 64 + 1
    for _ in range(2 * 350 + 64 + 64):
        await client.answer(client.call())
    await stand.idle()
    assert len(stand.connection.h2.streams) <= 64 + 2


# -- flow control, from the server ----------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "count", "size"),
    [
        pytest.param(1, 3, 60, id="one-byte"),
        pytest.param(7, 5, 300, id="seven"),
        pytest.param(1000, 3, 50_000, id="a-thousand"),
        pytest.param(65_535, 30, 100_000, id="usual"),
        pytest.param(2**20, 30, 100_000, id="large"),
        pytest.param(2**31 - 1, 3000, 1000, id="the-largest"),
    ],
)
@pytest.mark.parametrize("slow", [False, True])
async def test_answers_come_whole_and_in_order(stand, window, count, size, slow):
    settings = {SettingCodes.INITIAL_WINDOW_SIZE: window}
    client = await stand.raw(settings, buffer=4096 if slow else 0)
    answer = await client.answer(client.call("/t.T/us", b"%d %d" % (count, size)))
    assert [bytes([65 + n % 26]) * size for n in range(count)] == answer.messages
    assert answer.status == 0


async def test_a_window_that_is_closed_and_opened_by_settings(stand):
    client = await stand.raw({SettingCodes.INITIAL_WINDOW_SIZE: 0}, acknowledge=False)
    stream_id = client.call("/t.T/us", b"3 100")
    await client.ping()
    answer = client.answers[stream_id]
    assert (answer.data, answer.headers[":status"]) == (b"", "200")
    for window, so_far in ((100, 100), (50, 100), (150, 150)):
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        client.send()
        await client.ping()
        await client.ping()
        assert so_far == len(answer.data)
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    client.send()
    assert (await client.answer(stream_id)).messages == [b"A" * 100, b"B" * 100, b"C" * 100]


async def test_a_stream_without_room_does_not_hold_up_others(stand):
    client = await stand.raw(acknowledge=False)
    client.h2.increment_flow_control_window(2**20)
    blocked = client.call("/t.T/us", b"1 100000")  # more than its window
    free = client.call("/t.T/us", b"3 100")
    answer = await client.answer(free)
    assert answer.status == 0
    assert not client.answers[blocked].over
    client.h2.increment_flow_control_window(2**17, blocked)
    client.send()
    assert len((await client.answer(blocked)).messages[0]) == 100_000


async def test_who_waits_for_the_connections_window_gets_room_in_turn(stand):
    client = await stand.raw({SettingCodes.INITIAL_WINDOW_SIZE: 2**20}, acknowledge=False)
    streams = [client.call("/t.T/us", b"1 500000") for _ in range(5)]
    await client.until(lambda: sum(len(client.answers[each].data) for each in streams) == 65_535)
    for _ in range(20):
        client.h2.increment_flow_control_window(2**14)
        client.send()
        before = sum(len(client.answers[each].data) for each in streams)
        await client.until(
            lambda before=before: sum(len(client.answers[each].data) for each in streams) > before
        )
        await client.ping()
    least, *_, most = sorted(len(client.answers[each].data) for each in streams)
    assert most - least <= 65_535 + 2**14
    assert least >= 2 * 2**14


@pytest.mark.parametrize("windows", [{}, WIDE])
async def test_a_client_that_does_not_read_makes_its_writers_wait(stand, windows):
    stuck = await stand.raw(windows, buffer=4096)
    if windows:
        stuck.h2.increment_flow_control_window(2**31 - 1 - 65_535)
        stuck.send()
    stuck.call("/t.T/us_endless", b"x" * 100)
    await eventually(lambda: stand.server.tasks)
    connection = stand.connection
    await eventually(lambda: connection.output.waiting)
    for _ in range(3):
        await lives(stand)
    assert connection.output.waiting
    assert connection.output.transport.get_write_buffer_size() <= 600 * 2**14
    assert len(connection.output.unsent) == 0
    stuck.abort()
    await stand.deserted()


@pytest.mark.parametrize("windows", [{}, WIDE])
async def test_who_takes_nothing_for_too_long_is_given_up(serve, echo, windows):
    stand = await serve({"write_timeout": 0.05}, **echo.methods)
    stuck = await stand.raw(windows, buffer=4096)
    if windows:
        stuck.h2.increment_flow_control_window(2**31 - 1 - 65_535)
        stuck.send()
    stuck.call("/t.T/us_endless", b"x" * 100)
    await eventually(lambda: stand.server.connections and stand.connection.output.waiting)
    await stand.idle()
    await lives(stand)
    stuck.abort()
    await stand.deserted()


async def test_a_large_burst_for_a_client_that_reads_is_no_flood(stand, monkeypatch):
    """Large messages on many streams in one turn are no reason to close the connection."""
    monkeypatch.setattr(output, "MAX_UNSENT", 2**16)
    client = await stand.raw(WIDE)
    client.h2.increment_flow_control_window(2**31 - 1 - 65_535)
    client.send()
    await client.ping()
    streams = [client.call("/t.T/us", b"2 400000") for _ in range(20)]
    for stream_id in streams:
        client.h2.ping(b"12345678")
        client.send()
        answer = await client.answer(stream_id)
        assert [len(each) for each in answer.messages] == [400_000, 400_000]


async def test_a_writer_that_never_waits_lets_others_run(serve):
    async def us(request, context):
        for n in range(20_000):
            await context.write(b"%d" % n)

    stand = await serve(us=us, uu=Echo().uu)
    client = await stand.raw(WIDE)
    client.h2.increment_flow_control_window(2**31 - 1 - 65_535)
    client.send()
    await client.ping()
    long = client.call("/t.T/us")
    short = client.call("/t.T/uu")
    await client.answer(short)
    assert not client.answers[long].over
    assert [b"%d" % n for n in range(20_000)] == (await client.answer(long)).messages


async def test_a_call_cancelled_while_it_waits_for_room(stand):
    client = await stand.raw({SettingCodes.INITIAL_WINDOW_SIZE: 10})
    stream_id = client.call("/t.T/us_endless", b"x")
    client.acknowledge = False
    await eventually(lambda: stand.server.connections and stand.connection.output.waiting)
    client.reset(stream_id)
    await client.ping()
    await stand.idle()


# -- flow control, from clients -------------------------------------------------------------


async def test_how_much_a_client_may_send_ahead(stand):
    client = await stand.raw()
    await client.ping()
    assert client.h2.outbound_flow_control_window == 2**22
    assert client.h2.local_flow_control_window(client.begin("/t.T/su")) == 2**18


async def window(client: RawClient, stream_id: int, size: int) -> None:
    """Wait until the windows allow sending this much."""
    await client.until(lambda: client.h2.local_flow_control_window(stream_id) >= size)


@pytest.mark.parametrize("pad", [None, 0, 255])
async def test_a_long_upload_with_padding(stand, pad):
    client = await stand.raw()
    await client.ping()
    stream_id = client.begin("/t.T/su")
    for _ in range(3000):
        await window(client, stream_id, 500)
        client.data(stream_id, message(b"x" * 100), pad=pad)
    client.h2.end_stream(stream_id)
    client.send()
    answer = await client.answer(stream_id)
    assert answer.messages == [b"300000"]


async def test_a_message_larger_than_the_windows(serve, echo):
    stand = await serve({"max_message_bytes": 2**24}, **echo.methods)
    client = await stand.raw()
    stream_id = client.begin("/t.T/su")
    rest = message(b"x" * 6_000_000)
    while rest:
        await window(client, stream_id, 1)
        size = min(client.h2.local_flow_control_window(stream_id), 2**14)
        client.data(stream_id, rest[:size])
        rest = rest[size:]
    client.h2.end_stream(stream_id)
    client.send()
    assert (await client.answer(stream_id)).messages == [b"6000000"]


async def test_who_sends_more_than_is_read_is_stopped_and_others_are_not(serve):
    async def su(requests, context):
        await go_on.wait()
        return b"%d" % sum([len(request) async for request in requests])

    go_on = asyncio.Event()
    stand = await serve(su=su, uu=Echo().uu)
    client = await stand.raw()
    await client.ping()
    stream_id = client.begin("/t.T/su")
    sent = 0
    while client.h2.local_flow_control_window(stream_id) >= 5005:
        client.data(stream_id, message(b"x" * 5000))
        sent += 5000
    await client.ping()
    assert client.h2.local_flow_control_window(stream_id) < 5005
    assert (await client.answer(client.call())).status == 0
    go_on.set()
    await window(client, stream_id, 2**17)
    client.h2.end_stream(stream_id)
    client.send()
    assert [b"%d" % sent] == (await client.answer(stream_id)).messages


async def test_data_for_a_call_that_is_over(stand):
    """It counts for the connection's window, which must not run out."""
    client = await stand.raw()
    await client.ping()
    stream_id = client.begin("/t.T/none")
    answer = await client.answer(stream_id)
    assert answer.status == 12  # UNIMPLEMENTED
    for _ in range(2**23 // 2**14):
        client.send(DataFrame(stream_id, b"x" * 2**14).serialize())
        await client.drained()
    client.acknowledge = False
    assert (await client.answer(client.call())).status == 0
    assert client.h2.local_flow_control_window(client.begin("/t.T/su")) > 0


async def test_data_beyond_the_window_ends_the_connection(stand):
    client = await stand.raw()
    stream_id = client.begin("/t.T/su_waits")
    for _ in range(2**18 // 2**14 + 1):
        client.send(DataFrame(stream_id, message(b"") * (2**14 // 5)).serialize())
    with contextlib.suppress(ConnectionError):
        await client.hung_up()
    await stand.deserted()


async def test_a_client_that_takes_its_next_calls_elsewhere_gets_its_answers(stand, echo):
    """It sends GOAWAY and waits, like Java's and Node's clients; h2 would end its calls."""
    client = await stand.raw()
    waits = client.call("/t.T/uu_waits")
    streams = client.call("/t.T/us", b"10 20000")
    await client.ping()
    client.send(GoAwayFrame(0, last_stream_id=0, error_code=0).serialize())
    answer = await client.answer(streams)
    assert [len(each) for each in answer.messages] == [20_000] * 10
    echo.go_on.set()
    assert (await client.answer(waits)).status == 0


async def not_reading(stand) -> RawClient:
    """Return a client with much unread data and one waiting call."""
    client = await stand.raw(WIDE, buffer=4096)
    client.h2.increment_flow_control_window(2**30)
    client.call("/t.T/us_endless", b"x" * 100)
    client.call("/t.T/uu_waits")
    await eventually(lambda: stand.server.connections and stand.connection.output.paused)
    return client


BROKEN = b"\0\0\4\3\0\0\0\0\0\0\0\0\0"  # a reset of stream 0


async def test_a_broken_rule_ends_the_calls_of_the_connection(stand, echo):
    client = await stand.raw()
    client.call("/t.T/uu_waits")
    await eventually(lambda: echo.waiting)
    client.send(BROKEN)
    await client.hung_up()
    assert client.goaway == 1
    await stand.deserted()
    assert echo.waiting == 0


async def test_it_ends_them_at_once_even_if_the_client_does_not_read(stand, echo):
    client = await not_reading(stand)
    client.send(BROKEN)
    await stand.idle()
    assert echo.waiting == 0
    assert stand.server.connections  # closing waits
    client.abort()
    await stand.deserted()


async def test_closing_does_not_wait_for_ever(serve, echo):
    stand = await serve({"keepalive_timeout": 0.05}, **echo.methods)
    client = await not_reading(stand)
    client.send(BROKEN)
    await stand.deserted()


# -- keepalive ------------------------------------------------------------------------------


async def test_a_silent_client_is_asked_and_stays_while_it_answers(serve, echo, monkeypatch):
    monkeypatch.setattr(keepalive, "_MAX_DELAY", 0.05)  # this machine may be busy
    # A ping is sent only if the previous one was answered, one timeout later.
    stand = await serve({"keepalive_time": 0.02, "keepalive_timeout": 2.0}, **echo.methods)
    client = await stand.raw()
    stream_id = client.call("/t.T/uu_waits")
    await client.until(lambda: client.answers.pings >= 2)
    echo.go_on.set()
    assert (await client.answer(stream_id)).status == 0


@pytest.mark.parametrize("data", [b"", b"PRI", PREFACE, PREFACE + settings_frame()])
async def test_a_client_that_is_gone_is_noticed(serve, echo, data):
    stand = await serve({"keepalive_time": 0.02, "keepalive_timeout": 0.02}, **echo.methods)
    received = await raw_bytes(stand, data)
    assert bool(received) == bool(data)  # no response to a silent client: it may use HTTP/1.1
    await stand.deserted()


async def test_calls_of_a_client_that_is_gone_are_cancelled(serve, echo):
    stand = await serve({"keepalive_time": 0.02, "keepalive_timeout": 0.02}, **echo.methods)
    client = await stand.raw()
    client.call("/t.T/uu_waits")
    await eventually(lambda: echo.waiting)
    await stand.deserted()
    assert echo.waiting == 0


# -- any bytes, in any pieces ---------------------------------------------------------------


async def test_a_stalled_loop_is_not_taken_for_a_silent_client():
    connection = Connection(Server(keepalive_time=10.0, keepalive_timeout=10.0))
    transport = Transport(connection)
    connection.connection_made(transport)
    connection.data_received(PREFACE + settings_frame())
    connection.keepalive.pinged = True
    connection.keepalive.last_received -= 100.0
    connection.keepalive.due -= 100.0
    connection.keepalive.check()
    assert not transport.closing
    connection.keepalive.check()
    assert transport.closing


async def exchange(chunks, *, whole: bool) -> tuple[bytes, bool]:
    """Feed a connection; returns its answer and whether it closed.

    Args:
        chunks: bytes as they come.
        whole: wait until the calls in them have ended.
    """
    echo = Echo()
    echo.go_on.set()
    server = Server(max_message_bytes=2000)
    server.add_generic_rpc_handlers((methods(**echo.methods),))
    connection = Connection(server)
    transport = Transport(connection)
    connection.connection_made(transport)
    for chunk in chunks:
        if transport.closing:
            break
        connection.data_received(chunk)
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        while whole and server.tasks and not transport.closing:
            await asyncio.wait(tuple(server.tasks))
    while connection in server.turns:  # noqa: ASYNC110  there is no event for it
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    hung_up = transport.closing
    transport.close()
    await asyncio.sleep(0)
    if server.tasks:
        await asyncio.wait(tuple(server.tasks))
    await asyncio.sleep(0)
    assert not connection.calls
    assert not server.connections
    return bytes(transport.written), hung_up


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["uu", "su", "us", "none"]),
        st.sampled_from([b"5 10", b"x" * 1999, b"x" * 2001, b""]),
        st.sampled_from(["whole", "cut-off", "no-message", "padded", "in-pieces"]),
    ),
    min_size=1,
    max_size=5,
)


def wire_of(calls) -> tuple[ClientH2, bytes]:
    """Return a client's bytes and an object that reads the answers."""
    client = ClientH2()
    client.initiate_connection()
    for name, body, how in calls:
        stream_id = client.get_next_available_stream_id()
        client.send_headers(stream_id, request(f"/t.T/{name}"))
        whole = message(body)
        if how == "cut-off":
            client.send_data(stream_id, whole[:-1], end_stream=True)
        elif how == "no-message":
            client.end_stream(stream_id)
        elif how == "padded":
            client.send_data(stream_id, whole, end_stream=True, pad_length=9)
        elif how == "in-pieces":
            for begin in range(0, len(whole), 700):
                client.send_data(stream_id, whole[begin : begin + 700])
            client.end_stream(stream_id)
        else:
            client.send_data(stream_id, whole, end_stream=True)
        client.ping(b"12345678")
    return client, client.data_to_send()


def answers_to(calls, places) -> dict:
    client, wire = wire_of(calls)
    at = [0, *sorted({place % len(wire) for place in places}), len(wire)]
    chunks = [wire[begin:end] for begin, end in pairwise(at) if end > begin]
    written, hung_up = asyncio.run(exchange(chunks, whole=True))
    assert not hung_up
    answers = Answers()
    answers.take_in(client.receive_data(written))
    assert len(calls) == answers.pongs
    return {
        stream_id: (answer.headers, messages_in(bytes(answer.data)), answer.trailers)
        for stream_id, answer in answers.by_stream.items()
    }


@examples(max_examples=60)
@given(CALLS, st.lists(st.integers(0, 10**6), max_size=40))
def test_however_the_bytes_are_cut_the_answers_are_the_same(calls, places):
    expected = answers_to(calls, [])
    assert len(calls) == len(expected)
    assert expected == answers_to(calls, places)


@given(CALLS, st.data())
@examples(max_examples=150)
def test_whatever_is_changed_on_the_way_nothing_of_ours_fails(calls, data):
    """Violations end the connection or a call and never cause an internal error."""
    _, wire = wire_of(calls)
    changed = bytearray(wire)
    begin = len(PREFACE) if data.draw(st.booleans()) else 0
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(begin, len(changed) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if how == "set":
            changed[place] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del changed[place : place + data.draw(st.integers(1, 12))]
            if len(changed) <= begin:
                break
        else:
            changed[place:place] = data.draw(st.binary(max_size=12))
    asyncio.run(exchange([bytes(changed)], whole=False))


FRAMES = st.one_of(
    st.builds(
        lambda kind, flags, stream, body: (
            len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
        ),
        st.integers(0, 11),
        st.integers(0, 255),
        st.integers(0, 5),
        st.binary(max_size=20),
    ),
    st.builds(
        lambda stream, flags: HeadersFrame(
            stream, H2Connection().encoder.encode(request("/t.T/us")), flags=flags
        ).serialize(),
        st.sampled_from([1, 3, 5]),
        st.sampled_from([["END_HEADERS"], ["END_HEADERS", "END_STREAM"]]),
    ),
    st.builds(
        lambda stream, flags: DataFrame(stream, message(b"3 10"), flags=flags).serialize(),
        st.sampled_from([1, 3, 5]),
        st.sampled_from([[], ["END_STREAM"]]),
    ),
    st.builds(lambda stream: RstStreamFrame(stream).serialize(), st.sampled_from([1, 3, 5])),
    st.builds(
        lambda stream, size: WindowUpdateFrame(stream, window_increment=size).serialize(),
        st.sampled_from([0, 1, 3]),
        st.sampled_from([1, 2**31 - 1]),
    ),
)


@given(st.lists(FRAMES, max_size=12))
@examples(max_examples=200)
def test_frames_of_any_kind_in_any_order(frames):
    asyncio.run(exchange([PREFACE + SettingsFrame(0).serialize(), *frames], whole=False))

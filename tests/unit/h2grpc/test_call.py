"""Calls by gRPC's clients: kinds, metadata, statuses, deadlines, cancellation."""

import asyncio
import gzip
import zlib

import grpc
import grpc.aio
import pytest
from h2.settings import SettingCodes

from serving.h2grpc.call import EOF
from serving.h2grpc.server import Server
from tests.support.waiting import PATIENCE, eventually
from tests.unit.h2grpc.raw_client import message

CODE = grpc.StatusCode
LONG = "grün ✓ 100 %\n" + "x" * 500


async def uu(request, context):
    return b"re:" + request


async def us(request, context):
    for part in request.split():
        yield part


async def us_writes(request, context):
    for part in request.split():
        await context.write(part)


async def su(requests, context):
    return b"+".join([request async for request in requests])


async def su_reads(requests, context):
    got = []
    while (request := await context.read()) is not EOF:
        got.append(request)
    return b"+".join(got)


async def ss(requests, context):
    async for request in requests:
        yield b"re:" + request


async def ss_writes(requests, context):
    async for request in requests:
        await context.write(b"re:" + request)


ECHO = {
    "uu": uu,
    "us": us,
    "us_writes": us_writes,
    "su": su,
    "su_reads": su_reads,
    "ss": ss,
    "ss_writes": ss_writes,
}
WORDS = [b"one", b"", b"two", b"x" * 100_000]
EXPECTED = {
    "uu": (b"a b", [b"re:a b"]),
    "us": (b"a b", [b"a", b"b"]),
    "su": (WORDS, [b"+".join(WORDS)]),
    "ss": (WORDS, [b"re:" + word for word in WORDS]),
}


def method_of(channel, name):
    """Return a callable for ``/t.T/NAME`` with messages in bytes."""
    kind = name[:2]
    made = {
        "uu": channel.unary_unary,
        "us": channel.unary_stream,
        "su": channel.stream_unary,
        "ss": channel.stream_stream,
    }
    return made[kind](f"/t.T/{name}")


async def results(call, name) -> list[bytes]:
    return [await call] if name[1] == "u" else [answer async for answer in call]


async def failure(call) -> grpc.aio.AioRpcError:
    """Return the error of a unary call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@pytest.mark.parametrize("compression", list(grpc.Compression))
@pytest.mark.parametrize("name", ECHO)
async def test_all_kinds_of_call_on_grpc_aio(serve, name, compression):
    stand = await serve(**ECHO)
    given, expected = EXPECTED[name[:2]]
    async with stand.channel(compression=compression) as channel:
        call = method_of(channel, name)(given if name[0] == "u" else iter(given))
        assert expected == await results(call, name)
        assert await call.code() == CODE.OK
        await stand.idle()


@pytest.mark.parametrize("name", ECHO)
async def test_all_kinds_of_call_on_the_channel_for_threads(serve, name):
    stand = await serve(**ECHO)
    given, expected = EXPECTED[name[:2]]

    def run() -> list[bytes]:
        with grpc.insecure_channel(stand.target) as channel:
            answer = method_of(channel, name)(
                given if name[0] == "u" else iter(given), timeout=PATIENCE
            )
            return [answer] if name[1] == "u" else list(answer)

    assert expected == await asyncio.to_thread(run)


async def test_an_answer_comes_before_the_next_request(serve):
    stand = await serve(**ECHO)
    async with stand.channel() as channel:
        call = method_of(channel, "ss")()
        for word in (b"one", b"two"):
            await call.write(word)
            assert b"re:" + word == await call.read()
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF


@pytest.mark.parametrize("size", [0, 1, 16_378, 16_379, 16_380, 65_535, 3_000_000])
@pytest.mark.parametrize("name", ["uu", "us_writes"])
async def test_large_messages_both_ways(serve, name, size):
    stand = await serve(**ECHO)
    async with stand.channel() as channel:
        (answer,) = await results(method_of(channel, name)(b"x" * size or b"-"), name)
        assert len(answer) == (size or 1) + 3 * (name == "uu")


# -- metadata -------------------------------------------------------------------------------


async def test_metadata_both_ways(serve):
    seen = []

    async def uu(request, context):
        seen.extend(context.invocation_metadata())
        await context.send_initial_metadata((("a", "1"), ("a", "2"), ("b-bin", b"\0\xff")))
        context.set_trailing_metadata((("c", "3"), ("d-bin", b"")))
        return b""

    stand = await serve(uu=uu)
    async with stand.channel() as channel:
        sent = (("k", "v"), ("k", "w"), ("x-bin", b"\0\1\2\3"), ("y-bin", b""))
        call = method_of(channel, "uu")(b"", metadata=sent)
        await call
        initial = await call.initial_metadata()
        trailing = await call.trailing_metadata()
    assert initial.get_all("a") == ["1", "2"]
    assert initial["b-bin"] == b"\0\xff"
    assert (trailing["c"], trailing["d-bin"]) == ("3", b"")
    assert all(pair in seen for pair in sent)
    assert not any(key.startswith((":", "grpc-")) or key == "te" for key, _ in seen)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("AAE=", [b"\0\1"]),
        ("AAE", [b"\0\1"]),
        ("AAE,Ag,Aw==", [b"\0\1", b"\2", b"\3"]),
    ],
)
async def test_binary_metadata_as_some_clients_write_it(serve, value, expected):
    seen = []

    async def uu(request, context):
        seen.extend(value for key, value in context.invocation_metadata() if key == "x-bin")
        return b""

    stand = await serve(uu=uu)
    client = await stand.raw()
    answer = await client.answer(client.call(more=[("x-bin", value)]))
    assert (0, expected) == (answer.status, seen)


@pytest.mark.parametrize(
    ("header", "words"),
    [(("x-bin", "?"), "x-bin"), (("grpc-timeout", "soon"), "grpc-timeout")],
)
async def test_headers_that_cannot_be_read(serve, header, words):
    stand = await serve(**ECHO)
    client = await stand.raw()
    answer = await client.answer(client.call(more=[header]))
    assert CODE.INTERNAL.value[0] == answer.status
    assert words in answer.details


async def test_metadata_with_spaces_at_its_ends_is_taken(serve):
    """gRPC's clients send it; h2 alone would end the connection with all its calls."""
    seen = []

    async def uu(request, context):
        seen.extend(value for key, value in context.invocation_metadata() if key == "k")
        return b""

    stand = await serve(uu=uu)
    async with stand.channel() as channel:
        await method_of(channel, "uu")(b"", metadata=(("k", " v "),))
    assert seen == ["v"]


async def begins_badly(request, context):
    await context.send_initial_metadata((("Bad Key", "x"),))
    return b""


async def ends_badly(request, context):
    context.set_trailing_metadata((("a", "not\nprintable"),))
    return b""


async def aborts_badly(request, context):
    await context.abort(CODE.NOT_FOUND, "x", (("Bad Key", "x"),))


@pytest.mark.parametrize("uu", [begins_badly, ends_badly, aborts_badly])
async def test_a_handler_that_gives_bad_metadata_fails_but_the_client_is_told(serve, uu):
    stand = await serve(uu=uu, uu_echo=ECHO["uu"])
    client = await stand.raw()
    answer = await client.answer(client.call())
    assert answer.headers[":status"] == "200"
    async with stand.channel() as channel:
        error = await failure(method_of(channel, "uu")(b"", timeout=PATIENCE))
        assert (error.code(), "metadata" in error.details()) == (CODE.INTERNAL, True)
        assert await method_of(channel, "uu_echo")(b"x") == b"re:x"


async def test_initial_metadata_goes_out_once_and_at_once(serve):
    go_on = asyncio.Event()

    async def us(request, context):
        await context.send_initial_metadata((("a", "1"),))
        await go_on.wait()
        with pytest.raises(grpc.aio.UsageError):
            await context.send_initial_metadata(())
        yield b"x"

    stand = await serve(us=us)
    async with stand.channel() as channel:
        call = method_of(channel, "us")(b"")
        assert (await call.initial_metadata())["a"] == "1"
        go_on.set()
        assert await results(call, "us") == [b"x"]


# -- how calls end --------------------------------------------------------------------------


async def aborts(request, context):
    context.set_trailing_metadata((("b", "2"),))
    await context.abort(CODE.NOT_FOUND, LONG, (("a-bin", b"\1"),))


async def sets(request, context):
    context.set_trailing_metadata((("a-bin", b"\1"), ("b", "2")))
    context.set_details(LONG)
    context.set_code(CODE.NOT_FOUND)
    return b""


async def aborts_after_headers(request, context):
    await context.send_initial_metadata(())
    await aborts(request, context)


@pytest.mark.parametrize("uu", [aborts, sets, aborts_after_headers])
async def test_a_status_with_details_and_metadata(serve, uu):
    stand = await serve(uu=uu)
    async with stand.channel() as channel:
        error = await failure(method_of(channel, "uu")(b""))
    assert (error.code(), error.details()) == (CODE.NOT_FOUND, LONG)
    assert (error.trailing_metadata()["a-bin"], error.trailing_metadata()["b"]) == (b"\1", "2")


async def test_a_status_after_some_messages(serve):
    async def us(request, context):
        yield b"1"
        yield b"2"
        await context.abort(CODE.DATA_LOSS, " spaces at both ends ")

    stand = await serve(us=us)
    async with stand.channel() as channel:
        call = method_of(channel, "us")(b"")
        assert [await call.read(), await call.read()] == [b"1", b"2"]
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert (await call.code(), await call.details()) == (
            CODE.DATA_LOSS,
            " spaces at both ends ",
        )


async def test_what_is_done_after_an_abort_is_not_sent(serve):
    async def us_stubborn(request, context):
        try:
            await context.abort(CODE.NOT_FOUND, "first")
        except grpc.aio.AbortError:
            await context.write(b"x")
            await context.abort(CODE.DATA_LOSS, "second")

    stand = await serve(us_stubborn=us_stubborn)
    client = await stand.raw()
    answer = await client.answer(client.call("/t.T/us_stubborn"))
    assert (answer.details, bytes(answer.data)) == ("first", b"")


async def fails(request, context):
    raise LookupError("not for the client's eyes")


async def fails_late(request, context):
    yield b"1"
    raise LookupError("not for the client's eyes")


@pytest.mark.parametrize("name", ["uu", "us"])
async def test_an_exception_is_unknown_and_the_server_lives_on(serve, name):
    stand = await serve(uu=fails, us=fails_late, uu_echo=uu)
    async with stand.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await results(method_of(channel, name)(b""), name)
        assert caught.value.code() == CODE.UNKNOWN
        assert caught.value.details() == "Unexpected LookupError"
        assert await method_of(channel, "uu_echo")(b"x") == b"re:x"
        await stand.idle()


async def test_an_unknown_method(serve):
    stand = await serve(**ECHO)
    async with stand.channel() as channel:
        error = await failure(channel.unary_unary("/t.T/none")(b""))
        assert (
            error.code(),
            error.details(),
        ) == (CODE.UNIMPLEMENTED, "unknown method /t.T/none")


async def test_registered_methods_and_serializers(serve):
    stand = await serve()
    handler = grpc.unary_unary_rpc_method_handler(
        uu,
        request_deserializer=lambda data: data.upper(),
        response_serializer=lambda data: data * 2,
    )
    stand.server.add_registered_method_handlers("r.R", {"m": handler})
    async with stand.channel() as channel:
        assert await channel.unary_unary("/r.R/m")(b"ab") == b"re:ABre:AB"


@pytest.mark.parametrize("behaviour", [su, su_reads])
async def test_a_stream_of_decoded_messages(serve, behaviour):
    handler = grpc.stream_unary_rpc_method_handler(behaviour, request_deserializer=bytes.upper)
    stand = await serve(su=handler)
    async with stand.channel() as channel:
        assert await method_of(channel, "su")(iter([b"a", b"", b"b"])) == b"A++B"


@pytest.mark.parametrize("name", ["uu", "ss"])
async def test_a_message_that_cannot_be_decoded(serve, name):
    def refuse(data):
        raise ValueError(data)

    make = {"uu": grpc.unary_unary_rpc_method_handler, "ss": grpc.stream_stream_rpc_method_handler}
    stand = await serve(**{name: make[name](ECHO[name], request_deserializer=refuse)})
    client = await stand.raw()
    answer = await client.answer(client.call(f"/t.T/{name}"))
    assert CODE.INVALID_ARGUMENT.value[0] == answer.status
    await stand.idle()


async def test_an_answer_that_cannot_be_encoded(serve):
    def refuse(data):
        raise ValueError(data)

    stand = await serve(uu=grpc.unary_unary_rpc_method_handler(uu, response_serializer=refuse))
    async with stand.channel() as channel:
        assert (await failure(method_of(channel, "uu")(b""))).code() == CODE.UNKNOWN


async def test_interceptors_in_order(serve):
    class Marks(grpc.aio.ServerInterceptor):
        def __init__(self, mark):
            self.mark = mark

        async def intercept_service(self, continuation, details):
            seen.append((self.mark, details.method, dict(details.invocation_metadata)["k"]))
            return await continuation(details)

    seen = []
    stand = await serve({"interceptors": [Marks(1), Marks(2)]}, **ECHO)
    async with stand.channel() as channel:
        await method_of(channel, "uu")(b"", metadata=(("k", "v"),))
    assert seen == [(1, "/t.T/uu", "v"), (2, "/t.T/uu", "v")]


async def test_an_iterator_that_is_no_generator(serve):
    class Three:
        def __init__(self):
            self.left = 3

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return b"x"

    stand = await serve(us=lambda request, context: Three())
    async with stand.channel() as channel:
        assert await results(method_of(channel, "us")(b""), "us") == [b"x"] * 3


# -- invalid requests ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "more", "code", "words"),
    [
        pytest.param(message(b"abc")[:-1], (), CODE.INTERNAL, "incomplete", id="cut-off"),
        pytest.param(b"\0\0", (), CODE.INTERNAL, "incomplete", id="half-a-prefix"),
        pytest.param(message(b"x" * 2000), (), CODE.RESOURCE_EXHAUSTED, "2000", id="too-large"),
        pytest.param(
            message(gzip.compress(b"\0" * 10**7), compressed=True),
            [("grpc-encoding", "gzip")],
            CODE.RESOURCE_EXHAUSTED,
            "limit of 1000",
            id="a-bomb",
        ),
        pytest.param(
            message(zlib.compress(b"\0" * 10**6)[:-9], compressed=True),
            [("grpc-encoding", "deflate")],
            CODE.RESOURCE_EXHAUSTED,
            "limit of 1000",
            id="a-bomb-without-end",
        ),
        pytest.param(
            message(b"x"), [("grpc-encoding", "snappy")], CODE.UNIMPLEMENTED, "gzip", id="snappy"
        ),
        pytest.param(
            message(b"x", compressed=True), (), CODE.INTERNAL, "encoding", id="compressed-as-what"
        ),
        pytest.param(
            message(b"x", compressed=True),
            [("grpc-encoding", "gzip")],
            CODE.INTERNAL,
            "decompress",
            id="not-gzip",
        ),
    ],
)
@pytest.mark.parametrize("name", ["uu", "ss"])
async def test_bodies_that_are_refused(serve, name, body, more, code, words):
    # More than the limit as it comes, so that it is the decompressed size that counts.
    limit = {"max_message_bytes": 10**5 if len(body) > 5000 else 1000}
    words = words.replace("1000", str(limit["max_message_bytes"]))
    stand = await serve(limit, **ECHO)
    client = await stand.raw()
    stream_id = client.begin(f"/t.T/{name}", more)
    client.data(stream_id, body, end=True)
    answer = await client.answer(stream_id)
    assert code.value[0] == answer.status
    assert words in answer.details.replace("%20", " ")
    assert answer.headers["grpc-accept-encoding"] == "identity,deflate,gzip"
    assert (await client.answer(client.call())).status == 0  # the connection stays open
    await stand.idle()


@pytest.mark.parametrize(("name", "status"), [("uu", 12), ("us", 12), ("su", 0), ("ss", 0)])
@pytest.mark.parametrize("with_headers", [True, False])
async def test_no_message_at_all(serve, name, status, with_headers):
    stand = await serve(**ECHO)
    client = await stand.raw()
    stream_id = client.begin(f"/t.T/{name}", end=with_headers)
    if not with_headers:
        client.data(stream_id, b"", end=True)
    assert status == (await client.answer(stream_id)).status
    await stand.idle()


@pytest.mark.parametrize("at_once", [True, False])
async def test_two_messages_on_a_call_that_takes_one(serve, at_once):
    async def uu(request, context):
        began.set()
        await asyncio.Event().wait()

    began = asyncio.Event()
    stand = await serve(uu=uu)
    client = await stand.raw()
    stream_id = client.begin()
    if at_once:
        client.data(stream_id, message(b"a") + message(b"b"), end=True)
    else:
        client.data(stream_id, message(b"a"))
        await began.wait()
        client.data(stream_id, message(b"b"), end=True)
    assert (await client.answer(stream_id)).status == CODE.UNIMPLEMENTED.value[0]
    await stand.idle()
    assert began.is_set() != at_once


async def test_an_answer_need_not_wait_for_the_end_of_the_request(serve):
    stand = await serve(**ECHO)
    client = await stand.raw()
    stream_id = client.begin()
    client.data(stream_id, message(b"a"))
    answer = await client.answer(stream_id)
    assert (answer.status, answer.messages) == (0, [b"re:a"])
    await client.until(lambda: answer.reset is not None)
    assert answer.reset == 0  # NO_ERROR: the remaining data is not needed
    assert (await client.answer(client.call())).status == 0


async def test_many_unread_compressed_messages_take_no_more_room_than_they_came_with(serve):
    held = []

    async def ss(requests, context):
        await held_enough.wait()
        held.append(sum(map(len, context._incoming._messages)))
        async for request in requests:
            yield request

    held_enough = asyncio.Event()
    stand = await serve({"max_message_bytes": 10**6}, ss=ss)
    client = await stand.raw({SettingCodes.INITIAL_WINDOW_SIZE: 2**25})
    client.h2.increment_flow_control_window(2**25)
    stream_id = client.begin("/t.T/ss", [("grpc-encoding", "gzip")])
    bomb = message(gzip.compress(b"\0" * 10**6), compressed=True)
    for _ in range(20):
        client.data(stream_id, bomb)
    client.h2.end_stream(stream_id)
    await client.ping()
    held_enough.set()
    answer = await client.answer(stream_id)
    assert held[0] <= 20 * len(bomb)
    assert [len(each) for each in answer.messages] == [10**6] * 20


# -- deadlines and cancellation -------------------------------------------------------------


class Waiting:
    """Handlers that wait until they are cancelled, with a record of it."""

    def __init__(self):
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.done = asyncio.Event()
        self.contexts = []

    async def uu(self, request, context):
        self.contexts.append(context)
        context.add_done_callback(lambda _: self.done.set())
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def us(self, request, context):
        yield b"first"
        await self.uu(request, context)

    async def ss(self, requests, context):
        async for _ in requests:
            yield b"first"
            await self.uu(b"", context)

    async def us_writes(self, request, context):
        await context.write(b"first")
        await self.uu(request, context)

    async def ended(self):
        async with asyncio.timeout(PATIENCE):
            await self.cancelled.wait()
            await self.done.wait()
        (context,) = self.contexts
        assert context.cancelled()
        assert context.done()

    @property
    def methods(self):
        return {"uu": self.uu, "us": self.us, "ss": self.ss, "us_writes": self.us_writes}


async def begun(waiting, call, name) -> bool:
    """Return whether a call's handler began, and sent its first message, before its deadline."""
    try:
        if name != "uu":
            assert await call.read() == b"first"
    except grpc.aio.AioRpcError as error:
        if error.code() is CODE.DEADLINE_EXCEEDED:
            return False
        raise
    began, ended = (asyncio.ensure_future(each) for each in (waiting.began.wait(), call.code()))
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait({began, ended}, return_when=asyncio.FIRST_COMPLETED)
    began.cancel()
    ended.cancel()
    return waiting.began.is_set()


@pytest.mark.parametrize("name", ["uu", "us", "ss", "us_writes"])
@pytest.mark.parametrize("how", ["cancelled", "deadline", "channel-closed"])
async def test_a_client_that_gives_up(serve, name, how):
    # A handler that a busy machine starts too late gets more time.
    for timeout in (0.2, 2.0, 20.0) if how == "deadline" else (None,):
        waiting = Waiting()
        stand = await serve(**waiting.methods)
        async with stand.channel() as channel:
            request = b"" if name[0] == "u" else iter([b"x"])
            call = method_of(channel, name)(request, timeout=timeout)
            if not await begun(waiting, call, name):
                continue
            if how == "cancelled":
                call.cancel()
            if how == "channel-closed":
                await channel.close(None)
            expected = CODE.DEADLINE_EXCEEDED if how == "deadline" else CODE.CANCELLED
            assert expected == await call.code()
            await waiting.ended()
            await stand.idle()
        return
    pytest.fail("no handler began within 20 s")


async def test_a_client_whose_connection_is_lost(serve):
    waiting = Waiting()
    stand = await serve(**waiting.methods)
    client = await stand.raw()
    client.call()
    async with asyncio.timeout(PATIENCE):
        await waiting.began.wait()
    client.abort()
    await waiting.ended()
    await stand.deserted()


async def test_a_client_that_does_not_end_a_call_at_its_deadline_is_told(serve):
    waiting = Waiting()
    stand = await serve(**waiting.methods)
    client = await stand.raw()
    answer = await client.answer(client.call(more=[("grpc-timeout", "10m")]))
    assert CODE.DEADLINE_EXCEEDED.value[0] == answer.status
    await waiting.ended()
    await stand.idle()


@pytest.mark.parametrize("kind", ["uu", "us"])
async def test_an_answer_after_the_deadline_is_none(serve, kind):
    """As with grpc.aio; handlers have a grace period in which they may end with a better status."""

    async def until_late(context):
        while context.time_remaining():  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.001)

    async def uu(request, context):
        await until_late(context)
        return request

    async def us(request, context):
        yield request
        await until_late(context)

    async def uu_says(request, context):
        await until_late(context)
        await context.abort(CODE.RESOURCE_EXHAUSTED, "so")

    stand = await serve(uu=uu, us=us, uu_says=uu_says)
    client = await stand.raw()
    for timeout in ("1n", "5m"):
        call = client.call(f"/t.T/{kind}", more=[("grpc-timeout", timeout)])
        answer = await client.answer(call)
        assert answer.status == CODE.DEADLINE_EXCEEDED.value[0]
        assert answer.messages == ([] if kind == "uu" else [b"x"])
    answer = await client.answer(client.call("/t.T/uu_says", more=[("grpc-timeout", "5m")]))
    assert answer.status == CODE.RESOURCE_EXHAUSTED.value[0]
    await stand.idle()


async def test_a_handler_sees_the_deadline(serve):
    seen = []

    async def uu(request, context):
        seen.append(context.time_remaining())
        return b""

    stand = await serve(uu=uu)
    async with stand.channel() as channel:
        await method_of(channel, "uu")(b"")
        await method_of(channel, "uu")(b"", timeout=1000)
    assert seen[0] is None
    assert 900 < seen[1] < 1100  # gRPC's clients round it up


async def test_a_handler_that_ends_its_call_by_cancelling_itself(serve):
    async def uu(request, context):
        raise asyncio.CancelledError

    stand = await serve(uu=uu)
    async with stand.channel() as channel:
        error = await failure_of_cancelled(method_of(channel, "uu")(b""))
        assert error == CODE.CANCELLED
        await stand.idle()


async def failure_of_cancelled(call) -> grpc.StatusCode:
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
    return await call.code()


async def test_a_request_that_never_comes(serve):
    stand = await serve({"request_timeout": 0.02}, **ECHO)
    client = await stand.raw()
    stream_id = client.begin()
    client.data(stream_id, message(b"abc")[:-1])
    answer = await client.answer(stream_id)
    assert CODE.DEADLINE_EXCEEDED.value[0] == answer.status
    await stand.idle()


async def test_a_callback_that_fails_harms_nobody(serve):
    told = []

    async def uu(request, context):
        context.add_done_callback(lambda _: 1 / 0)
        context.add_done_callback(told.append)
        if request == b"wait":
            await asyncio.Event().wait()
        return b"x"

    stand = await serve(uu=uu)
    client = await stand.raw()
    assert (await client.answer(client.call())).status == 0
    assert len(told) == 1
    client.call(body=b"wait")
    client.call(body=b"wait")
    await client.ping()
    client.abort()
    await stand.deserted()
    assert len(told) == 3


async def test_a_call_cancelled_before_it_runs(serve):
    stand = await serve(**ECHO)
    client = await stand.raw()
    stream_id = client.h2.get_next_available_stream_id()
    raw = b""
    for _ in range(3):
        stream_id = client.begin("/t.T/ss")
        client.reset(stream_id)
    client.send(raw)
    assert (await client.answer(client.call())).status == 0
    await stand.idle()


async def test_a_cancelled_handler_may_take_its_time(serve):
    go_on, cleaned = asyncio.Event(), asyncio.Event()
    began = asyncio.Event()

    async def uu(request, context):
        try:
            began.set()
            await asyncio.Event().wait()
        finally:
            await go_on.wait()
            await context.write(b"to nobody")
            cleaned.set()

    stand = await serve(uu=uu)
    client = await stand.raw()
    stream_id = client.call()
    async with asyncio.timeout(PATIENCE):
        await began.wait()
    client.reset(stream_id)
    await client.ping()
    await eventually(lambda: not stand.connection.calls)
    assert len(stand.server.tasks) == 1
    go_on.set()
    async with asyncio.timeout(PATIENCE):
        await cleaned.wait()
    await stand.idle()


def test_a_server_needs_no_loop_to_be_made():
    assert not Server().stopping

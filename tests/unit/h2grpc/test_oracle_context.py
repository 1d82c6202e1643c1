"""Contexts of handlers, limits and endings of calls, compared with grpc.aio."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from serving.h2grpc.call import Call
from serving.h2grpc.server import Server
from tests.support.waiting import PATIENCE
from tests.unit.h2grpc.conftest import bound_socket, methods

CODE = grpc.StatusCode


@dataclass
class Stage:
    """One of the two servers, a channel to it, and a record of its handlers."""

    server: Any
    channel: grpc.aio.Channel
    saw: list = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def stages():
    """Start both servers; ``make`` returns the handlers of one, options go to the servers."""
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    made: list[Stage] = []

    async def started(make: Callable[[Stage], dict], **options) -> list[Stage]:
        ours, theirs = Server(**options), grpc.aio.server(**options)
        port = await ours.start(bound_socket())
        their_port = theirs.add_insecure_port("127.0.0.1:0")
        for server, at in ((ours, port), (theirs, their_port)):
            channel = grpc.aio.insecure_channel(
                f"127.0.0.1:{at}", options=[("grpc.use_local_subchannel_pool", 1)]
            )
            made.append(Stage(server, channel))
            server.add_generic_rpc_handlers((methods(**make(made[-1])),))
        await theirs.start()
        return made

    yield started
    for stage in made:
        await stage.channel.close()
        await stage.server.stop(0)


DIFFERENT = {
    "`context.code()` after `set_code(5)`": "returns the status; grpc.aio returns the number",
    "`cancelled()` and `done()` of a call cancelled by the client": (
        "return true; grpc.aio's do not change"
    ),
    "a done callback that raises": "is logged, and the others run; grpc.aio skips the others",
    "handlers and interceptors that are plain functions": (
        "UNKNOWN: they would block the event loop; grpc.aio runs handlers in threads"
    ),
    "an interceptor that raises": "UNKNOWN; grpc.aio never responds",
    "text instead of bytes, without a serializer": "UNKNOWN; grpc.aio sends it as UTF-8",
    "nothing instead of bytes, without a serializer": "UNKNOWN; grpc.aio sends an empty message",
    "a handler that ends after the deadline, but before the grace period of a second": (
        "DEADLINE_EXCEEDED as with grpc.aio, which however cancels it at the deadline"
    ),
    "metadata of a request whose key begins with `grpc-`": (
        "is reserved (doc/PROTOCOL-HTTP2.md) and not shown to handlers; grpc.aio shows unknown keys"
    ),
    "a request without `te`": "is served; grpc.aio resets the stream",
    "a request whose `host` differs from `:authority`": (
        "is malformed (RFC 9113, 8.3.1); grpc.aio serves it"
    ),
    "a method other than POST": "HTTP status 405; grpc.aio resets the stream",
    "`set_compression` in a method with one response": "compresses it; grpc.aio does not",
    "a client without `grpc-accept-encoding`": (
        "gets uncompressed responses (doc/compression.md); grpc.aio compresses"
    ),
    "a client that compresses its requests": (
        "gets responses with the same compression, unless the server or handler sets another; only "
        "from 128 bytes and if the result is smaller. grpc.aio compresses only if one is set"
    ),
    "`grpc.compression_enabled_algorithms_bitset`, channelz, `xds`": "not implemented",
}
"""Intended differences other than endings."""


async def code_of(call) -> grpc.StatusCode:
    """Return the result of a call after all its messages were read."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(grpc.aio.AioRpcError):
            if hasattr(call, "__aiter__"):
                async for _ in call:
                    pass
        return await call.code()


def uu(stage: Stage, name="uu", **kwargs):
    return stage.channel.unary_unary(f"/t.T/{name}")(b"x", **kwargs)


async def both(stages: list[Stage], ask) -> list:
    return await asyncio.gather(*(ask(each) for each in stages))


async def test_what_the_context_says(stages):
    def make(stage):
        def look(context):
            stage.saw.append(
                (
                    context.code(),
                    context.details(),
                    tuple(context.trailing_metadata()),
                    context.done(),
                    context.cancelled(),
                    context.peer().rpartition(":")[0],
                    {key: list(value) for key, value in context.auth_context().items()},
                    context.peer_identities(),
                    context.peer_identity_key(),
                    context.time_remaining() is None,
                    [each for each in context.invocation_metadata() if each[0] != "user-agent"],
                )
            )

        def over(context):
            look(context)
            stage.done.set()

        async def uu(request, context):
            context.add_done_callback(over)
            look(context)
            context.set_details("so")
            context.set_code(CODE.ABORTED)
            context.set_trailing_metadata((("a", "b"),))
            look(context)
            context.set_code(5)
            look(context)
            return request

        return {"uu": uu}

    ours, theirs = await stages(make)
    sent = (("key", "value"), ("raw-bin", b"\0\xff"))
    codes = await both((ours, theirs), lambda each: code_of(uu(each, metadata=sent)))
    assert codes == [CODE.NOT_FOUND] * 2
    await both((ours, theirs), lambda each: each.done.wait())
    *before, last = theirs.saw
    # A number is returned as the status that it stands for.
    assert [row[0] for row in ours.saw[2:]] == [CODE.NOT_FOUND] * 2
    assert [row[0] for row in theirs.saw[2:]] == [5] * 2
    assert [row[1:] for row in ours.saw] == [row[1:] for row in (*before, last)]
    assert [row[0] for row in ours.saw[:2]] == [row[0] for row in before[:2]]


async def test_the_time_that_is_left(stages):
    def make(stage):
        async def uu(request, context):
            stage.saw.append(context.time_remaining())
            return request

        return {"uu": uu}

    found = await stages(make)
    await both(found, lambda each: code_of(uu(each, timeout=500)))
    # The client rounds up to a second.
    left = [each.saw[0] for each in found]
    assert all(400 < seconds <= 501 for seconds in left), left


WAITING = ("uu_waits", "us_waits", "su_waits", "ss_waits")


def waiting(stage):
    """Handlers that wait, with a record of how the wait ends."""

    async def wait(context):
        context.add_done_callback(lambda _: stage.done.set())
        stage.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stage.saw.append("cancelled")
            raise

    async def single(request, context):
        await wait(context)

    async def many(request, context):
        yield b"first"
        await wait(context)

    return {"uu_waits": single, "su_waits": single, "us_waits": many, "ss_waits": many}


def begin(stage, name, **kwargs):
    if name[0] == "u":
        make = stage.channel.unary_unary if name[1] == "u" else stage.channel.unary_stream
        return make(f"/t.T/{name}")(b"x", **kwargs)
    make = stage.channel.stream_unary if name[1] == "u" else stage.channel.stream_stream
    return make(f"/t.T/{name}")(**kwargs)


@pytest.mark.parametrize("how", ["cancel", "deadline", "hang-up"])
@pytest.mark.parametrize("name", WAITING)
async def test_a_handler_whose_client_gives_up(stages, name, how):
    async def ask(stage):
        call = begin(stage, name, timeout=0.3 if how == "deadline" else None)
        async with asyncio.timeout(PATIENCE):
            if how == "deadline":
                assert await call.code() is CODE.DEADLINE_EXCEEDED
                # If no handler started in time, there is nothing to check.
                if not stage.began.is_set():
                    return ["cancelled"]
            else:
                await stage.began.wait()
                if how == "cancel":
                    call.cancel()
                else:
                    await stage.channel.close()
            await stage.done.wait()
        return stage.saw

    ours, theirs = await both(await stages(waiting), ask)
    assert ours == theirs == ["cancelled"]


@pytest.mark.parametrize("name", WAITING)
async def test_stop_after_the_grace(stages, name):
    async def ask(stage):
        call = begin(stage, name)
        await stage.began.wait()
        await stage.server.stop(0.05)
        return await code_of(call), stage.saw

    ours, theirs = await both(await stages(waiting), ask)
    assert ours == theirs == (CODE.UNAVAILABLE, ["cancelled"])


async def test_stop_within_the_grace(stages):
    def make(stage):
        async def uu(request, context):
            stage.began.set()
            await stage.done.wait()
            return request

        return {"uu": uu}

    async def ask(stage):
        call = uu(stage)
        await stage.began.wait()
        stopping = asyncio.create_task(stage.server.stop(PATIENCE))
        await asyncio.sleep(0)
        stage.done.set()
        answer = await call
        await stopping
        return answer

    assert await both(await stages(make), ask) == [b"x", b"x"]


async def test_a_limit_of_calls_at_once(stages):
    def make(stage):
        async def uu(request, context):
            stage.saw.append(request)
            if len(stage.saw) == 2:
                stage.began.set()
            await stage.done.wait()
            return request

        return {"uu": uu}

    async def ask(stage):
        running = [uu(stage) for _ in range(2)]
        await stage.began.wait()
        refused = [await code_of(uu(stage)) for _ in range(3)]
        stage.done.set()
        return refused, [await code_of(each) for each in running], await code_of(uu(stage))

    ours, theirs = await both(await stages(make, maximum_concurrent_rpcs=2), ask)
    assert ours == theirs == ([CODE.RESOURCE_EXHAUSTED] * 3, [CODE.OK] * 2, CODE.OK)


class Intercepts(grpc.aio.ServerInterceptor):
    """Handlers named after what they do."""

    def __init__(self, seen):
        self.seen = seen

    async def intercept_service(self, continuation, details):
        self.seen.append(details.method)
        name = details.method.rpartition("_")[2]
        if name == "none":
            return None
        if name == "raises":
            raise ValueError("x")
        if name == "other":
            other = type(details)("/t.T/uu", details.invocation_metadata)
            return await continuation(other)
        if name == "replaced":

            async def replacement(request, context):
                await context.abort(CODE.PERMISSION_DENIED, "no")

            return grpc.unary_unary_rpc_method_handler(replacement)
        return await continuation(details)


@pytest.mark.parametrize("name", ["uu", "uu_none", "uu_raises", "uu_replaced", "missing"])
async def test_interceptors(stages, name):
    def make(stage):
        async def uu(request, context):
            return request

        return dict.fromkeys(("uu", "uu_none", "uu_raises", "uu_replaced"), uu)

    seen = []
    chain = [Intercepts(seen), Intercepts(seen)]
    found = await stages(make, interceptors=chain)
    if name == "uu_raises":  # grpc.aio does not respond to such a call
        assert await code_of(uu(found[0], name)) is CODE.UNKNOWN
        return
    ours = await code_of(uu(found[0], name))
    count = len(seen)
    assert ours == await code_of(uu(found[1], name))
    assert seen[:count] == seen[count:]


async def test_what_is_no_interceptor():
    for make in (Server, grpc.aio.server):
        with pytest.raises(ValueError, match=r"Interceptor"):
            make(interceptors=[object()])


@pytest.mark.parametrize(
    ("answer", "serializer"),
    [
        pytest.param(1, None, id="number"),
        pytest.param(None, str.encode, id="nothing-for-the-serializer"),
        pytest.param(b"x", lambda _: 1 / 0, id="a-serializer-that-fails"),
    ],
)
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
async def test_an_answer_that_cannot_be_sent(stages, answer, serializer, kind):
    async def single(request, context):
        return answer

    async def many(request, context):
        yield answer

    behaviour = single if kind == "unary_unary" else many
    made = getattr(grpc, f"{kind}_rpc_method_handler")(behaviour, response_serializer=serializer)
    found = await stages(lambda _: {"x": made})
    codes = await both(found, lambda each: code_of(getattr(each.channel, kind)("/t.T/x")(b"")))
    assert codes == [CODE.UNKNOWN] * 2


async def test_text_is_no_message(stages):
    async def uu(request, context):
        return "text"

    ours, theirs = await stages(lambda _: {"uu": uu})
    assert [await code_of(each.channel.unary_unary("/t.T/uu")(b"")) for each in (ours, theirs)] == [
        CODE.UNKNOWN,
        CODE.OK,
    ]


async def test_a_plain_function_is_no_handler(stages):
    def uu(request, context):
        return request

    ours, theirs = await stages(lambda _: {"uu": uu})
    assert await code_of(ours.channel.unary_unary("/t.T/uu")(b"")) is CODE.UNKNOWN
    del theirs  # it has no thread pool here


async def test_a_done_callback_that_fails_does_not_keep_others(stages):
    def make(stage):
        async def uu(request, context):
            context.add_done_callback(lambda _: 1 / 0)
            context.add_done_callback(lambda _: stage.done.set())
            return request

        return {"uu": uu}

    ours, _ = await stages(make)
    assert await code_of(uu(ours)) is CODE.OK
    async with asyncio.timeout(PATIENCE):
        await ours.done.wait()


async def test_requests_read_in_both_ways_and_after_their_end(stages):
    def make(stage):
        async def su(requests, context):
            got = [await context.read()]
            async for each in requests:
                got.append(each)
                if len(got) == 2:
                    break
            got += [each async for each in requests]
            got += [await context.read() is grpc.aio.EOF for _ in range(2)]
            return repr(got).encode()

        return {"su": su}

    found = await stages(make)
    words = [b"a", b"b", b"c"]
    ours, theirs = await both(found, lambda each: each.channel.stream_unary("/t.T/su")(iter(words)))
    assert ours == theirs == repr([*words, True, True]).encode()


async def test_a_call_that_is_over_is_no_cyclic_garbage():
    async def uu(request, context):
        return request

    async def ss(requests, context):
        async for each in requests:
            yield each

    server = Server()
    handlers = {
        "uu": grpc.unary_unary_rpc_method_handler(uu, bytes, bytes),
        "ss": grpc.stream_stream_rpc_method_handler(ss, bytes, bytes),
    }
    server.add_generic_rpc_handlers((methods(**handlers),))
    port = await server.start(bound_socket())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.unary_unary("/t.T/uu")(b"")
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                await channel.unary_unary("/t.T/uu")(b"")
                assert [each async for each in channel.stream_stream("/t.T/ss")(iter([b"a"]))]
            while server.tasks:  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0)
            left = [each for each in gc.get_objects() if type(each) is Call]
        finally:
            gc.enable()
    await server.stop(0)
    assert left == []

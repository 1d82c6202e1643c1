"""The client of one long call: messages of any size, and every way in which a call can end."""

import asyncio
import contextlib

import grpc
import pytest
import trustme

from serving.credentials.tls import Alpn, TlsFiles, following_context, load_dial_tls, watch_tls
from serving.h2grpc.client import CallError, CallOptions, ClientCall
from serving.h2grpc.context import EOF
from serving.settings import LinkSettings
from tests.support.waiting import PATIENCE, eventually
from tests.unit.credentials.certificates import issue

LIMIT = 2**23
SIZES = [0, 1, 2**14 - 5, 2**14, 3 * 2**20]
"""Around the size of a frame, and above all flow-control windows."""


def options(**changes):
    defaults = {
        "max_message_bytes": LIMIT,
        "keepalive_time": PATIENCE,
        "keepalive_timeout": PATIENCE,
    }
    return CallOptions(**(defaults | changes))


@contextlib.asynccontextmanager
async def opened(port, method, metadata=(), **changes):
    async with asyncio.timeout(PATIENCE):
        call = await ClientCall.open(
            "127.0.0.1", port, f"/t.T/{method}", options(**changes), metadata
        )
        try:
            yield call
        finally:
            call.cancel()


async def echo(_, context):
    while (message := await context.read()) is not EOF:
        await context.write(message)


async def refuse(_, context):
    await context.read()
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "vóll: 100 %")


async def wait(_, context):
    await context.write(b"started")
    await asyncio.Event().wait()


async def token(_, context):
    await context.write(dict(context.invocation_metadata())["authorization"].encode())


@pytest.fixture
async def stand(serve):
    return await serve(
        {"max_message_bytes": LIMIT}, ss_echo=echo, ss_refuse=refuse, ss_wait=wait, ss_token=token
    )


async def test_messages_of_all_sizes_go_both_ways_and_the_call_ends_in_order(stand):
    async with opened(stand.port, "ss_echo") as call:
        for size in SIZES:
            await call.write(bytes(size))
            assert await call.read() == bytes(size)
        call.done_writing()
        assert await call.read() is None
        with pytest.raises(CallError):
            await call.write(b"late")


async def test_messages_that_are_not_read_wait(stand):
    """Neither side reads while both write more than their windows hold; nothing is lost."""
    async with opened(stand.port, "ss_echo") as call:
        message = bytes(2**19)
        writer = asyncio.create_task(write_all(call, [message] * 40))
        assert [await call.read() for _ in range(40)] == [message] * 40
        await writer


async def write_all(call, messages):
    for message in messages:
        await call.write(message)


async def test_metadata_reaches_the_server(stand):
    async with opened(stand.port, "ss_token", [("authorization", "Bearer x")]) as call:
        assert await call.read() == b"Bearer x"
        assert await call.read() is None


async def test_the_servers_status_is_the_error(stand):
    async with opened(stand.port, "ss_refuse") as call:
        await call.write(b"x")
        with pytest.raises(CallError, match="RESOURCE_EXHAUSTED: vóll: 100 %"):
            await call.read()
    async with opened(stand.port, "ss_unknown") as call:
        with pytest.raises(CallError, match="UNIMPLEMENTED"):
            await call.read()


async def test_a_cancelled_call_ends_on_the_server(stand):
    async with opened(stand.port, "ss_wait") as call:
        assert await call.read() == b"started"
        call.cancel()
        call.cancel()
        await stand.deserted()
        with pytest.raises(CallError, match="CANCELLED"):
            await call.read()


async def test_a_message_above_the_limit_ends_the_call(stand):
    async with opened(stand.port, "ss_echo", max_message_bytes=100) as call:
        await call.write(bytes(101))
        with pytest.raises(CallError, match="above the limit of 100"):
            await call.read()


async def test_a_server_that_stops_ends_the_call(serve):
    stand = await serve(ss_wait=wait)
    async with opened(stand.port, "ss_wait") as call:
        assert await call.read() == b"started"
        await stand.server.stop(0)
        with pytest.raises(CallError):
            await call.read()


@contextlib.asynccontextmanager
async def server(behave):
    """Serve plain TCP."""
    tasks = set()

    async def handle(reader, writer):
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await behave(reader, writer)
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def silent(reader, _):
    while await reader.read(2**16):
        pass


async def closing(reader, _):
    await reader.read(1)


async def wrong(reader, writer):
    writer.write(bytes.fromhex("000004080000000000 00000000"))  # a WINDOW_UPDATE of 0
    await silent(reader, writer)


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        pytest.param(silent, "UNAVAILABLE: the server sent nothing", id="silent"),
        pytest.param(closing, "UNAVAILABLE: the connection was lost", id="closes"),
        pytest.param(wrong, "INTERNAL: the server violates the protocol", id="wrong frame"),
    ],
)
async def test_a_server_that_is_none(behave, words):
    async with (
        server(behave) as port,
        opened(port, "ss_echo", keepalive_time=0.05, keepalive_timeout=0.05) as call,
    ):
        with pytest.raises(CallError, match=words):
            await call.read()


async def test_nobody_listens():
    async with server(silent) as port:
        pass
    with pytest.raises(CallError, match=r"UNAVAILABLE: cannot connect to 127\.0\.0\.1"):
        await ClientCall.open("127.0.0.1", port, "/t.T/ss_echo", options())


async def test_tls_needs_the_right_authority_and_name(serve, tmp_path):
    (tmp_path / "other").mkdir()
    files, other = issue(tmp_path, trustme.CA()), issue(tmp_path / "other", trustme.CA())
    watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key)))
    stand = await serve(tls=following_context(watched, Alpn.H2), ss_echo=echo)
    good = load_dial_tls(LinkSettings(tls_ca_file=str(files.ca)))
    async with opened(stand.port, "ss_echo", tls=good) as call:
        await call.write(b"x")
        assert await call.read() == b"x"
    wrong = load_dial_tls(LinkSettings(tls_ca_file=str(other.ca)))
    for tls, name in ((wrong, None), (good, "elsewhere.test")):
        with pytest.raises(CallError, match="certificate verify failed"):
            await ClientCall.open(
                "127.0.0.1", stand.port, "/t.T/ss_echo", options(tls=tls, server_name=name)
            )
    await eventually(lambda: not stand.server.tasks)

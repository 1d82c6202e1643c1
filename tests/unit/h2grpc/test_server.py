"""Graceful shutdown with all kinds of clients, and TLS."""

import asyncio
import contextlib
import ssl

import grpc
import grpc.aio
import pytest
import trustme
from h2.settings import SettingCodes
from hyperframe.frame import PingFrame

from serving.credentials.tls import Alpn, TlsFiles, following_context, watch_tls
from serving.h2grpc import budget
from serving.h2grpc.server import Server
from tests.integration.h2grpc.relay import Relay
from tests.support.waiting import PATIENCE, eventually
from tests.unit.credentials.certificates import issue
from tests.unit.h2grpc.conftest import bound_socket
from tests.unit.h2grpc.raw_client import RawClient, message

CODE = grpc.StatusCode
GRACE = 5.0
"""Grace period, seconds; passing tests do not wait for it."""


class Handlers:
    """A handler that waits and one that never stops."""

    def __init__(self):
        self.go_on = asyncio.Event()
        self.running = 0
        self.stubborn = asyncio.Event()

    async def uu(self, request, context):
        return request

    async def uu_waits(self, request, context):
        self.running += 1
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        return request

    async def us_endless(self, request, context):
        while True:
            await context.write(b"x" * 100_000)

    async def uu_stubborn(self, request, context):
        self.running += 1
        while not self.stubborn.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.stubborn.wait()
        return request

    @property
    def methods(self):
        names = ("uu", "uu_waits", "us_endless", "uu_stubborn")
        return {name: getattr(self, name) for name in names}


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
async def stand(serve, handlers):
    return await serve(**handlers.methods)


async def test_running_calls_end_well_within_the_grace(stand, handlers):
    async with stand.channel() as channel:
        call = channel.unary_unary("/t.T/uu_waits")(b"x")
        await eventually(lambda: handlers.running)
        stopping = asyncio.create_task(stand.server.stop(GRACE))
        await eventually(lambda: stand.server.stopping)
        handlers.go_on.set()
        assert await call == b"x"
        await stopping
    await stand.deserted()


async def test_running_calls_are_ended_after_the_grace(stand, handlers):
    client = await stand.raw()
    stream_id = client.call("/t.T/uu_waits")
    await eventually(lambda: handlers.running)
    await stand.server.stop(0.02)
    answer = await client.answer(stream_id)
    assert (answer.status, answer.details) == (
        14,
        "the%20server%20is%20shutting%20down",
    )  # UNAVAILABLE
    await client.hung_up()
    await stand.deserted()
    assert handlers.running == 0


async def test_clients_are_told_to_go_elsewhere(stand, handlers):
    client = await stand.raw()
    running = client.call("/t.T/uu_waits")
    await eventually(lambda: handlers.running)
    stopping = asyncio.create_task(stand.server.stop(GRACE))
    await client.until(lambda: client.goaway is not None)
    assert client.goaway == 0
    late = await client.answer(client.call())
    assert late.reset == 7  # REFUSED_STREAM: clients retry it elsewhere automatically
    assert not client.answers[running].over
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", stand.port)
    handlers.go_on.set()
    assert (await client.answer(running)).status == 0
    await stopping


async def test_calls_on_the_way_are_served(stand, handlers):
    client = await stand.raw()
    running = client.call("/t.T/uu_waits")
    await eventually(lambda: handlers.running)
    stopping = asyncio.create_task(stand.server.stop(GRACE))
    await eventually(lambda: stand.server.stopping)
    late = client.call()  # nothing that the server has sent was read yet
    assert (await client.answer(late)).status == 0
    assert client.goaway == 0
    handlers.go_on.set()
    assert (await client.answer(running)).status == 0
    await stopping


async def test_a_channel_loses_no_call_when_servers_take_turns(serve, handlers):
    """Each server stops while the next one runs behind the same address, as in a cluster."""
    stands = [await serve(**handlers.methods)]
    relay = Relay(stands[0].port)
    await relay.start()
    going, answers = True, 0

    async def caller(method):
        nonlocal answers
        while going:
            assert await method(b"x") == b"x"
            answers += 1

    async with grpc.aio.insecure_channel(f"127.0.0.1:{relay.port}") as channel:
        method = channel.unary_unary("/t.T/uu")
        callers = [asyncio.create_task(caller(method)) for _ in range(10)]
        for _ in range(3):
            stands.append(await serve(**handlers.methods))
            relay.upstream = stands[-1].port
            seen = answers
            await eventually(lambda seen=seen: answers > seen + 20)
            await stands[-2].server.stop(PATIENCE)
        going = False
        await asyncio.gather(*callers)
    await relay.stop()


async def test_a_channel_sees_a_stopped_server_as_unavailable(stand):
    async with stand.channel() as channel:
        assert await channel.unary_unary("/t.T/uu")(b"x") == b"x"
        await stand.server.stop(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/uu")(b"x")
    assert caught.value.code() == CODE.UNAVAILABLE


async def test_stop_again_and_at_the_same_time(stand, handlers):
    client = await stand.raw()
    client.call("/t.T/uu_waits")
    await eventually(lambda: handlers.running)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(stand.server.stop(0.02), stand.server.stop(0))
        await stand.server.stop(GRACE)
    await stand.deserted()


async def test_stop_without_having_started():
    await Server().stop(GRACE)


@pytest.mark.parametrize("windows", [{}, {SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}])
async def test_stop_with_a_client_that_does_not_read(stand, windows):
    client = await stand.raw(windows, buffer=4096)
    client.h2.increment_flow_control_window(2**30)
    for _ in range(3):
        client.call("/t.T/us_endless")
    await eventually(lambda: stand.server.connections and stand.connection.output.waiting)
    async with asyncio.timeout(PATIENCE):
        await stand.server.stop(0.02)
    await stand.deserted()


async def test_stop_with_a_handler_that_does_not_end(stand, handlers):
    client = await stand.raw()
    stream_id = client.call("/t.T/uu_stubborn")
    await eventually(lambda: handlers.running)
    async with asyncio.timeout(PATIENCE):
        await stand.server.stop(0)
    assert (await client.answer(stream_id)).status == 14
    assert len(stand.server.tasks) == 1
    handlers.stubborn.set()
    await stand.deserted()


@pytest.mark.parametrize("data", [b"", b"PRI * HT"])
async def test_a_client_that_has_not_spoken_does_not_hold_up_the_end(stand, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(data)
    await eventually(lambda: stand.server.connections)
    await stand.server.stop(GRACE)
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionResetError):  # its data was not read
            assert await reader.read() == b""
    writer.close()


async def test_many_connections_come_and_go(stand):
    async def one(n: int) -> None:
        client = await RawClient.connect(stand.port)
        answer = await client.answer(client.call(body=b"%d" % n))
        assert [b"%d" % n] == answer.messages
        await client.close()

    await asyncio.gather(*(one(n) for n in range(100)))
    await stand.deserted()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_peer(host):
    peers = []

    class Keeps(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation, details):
            peers.extend(each.peer for each in server.connections)
            return await continuation(details)

    server = Server(interceptors=[Keeps()])
    try:
        listening = bound_socket(host)
    except OSError:
        pytest.skip("no IPv6 here")
    port = await server.start(listening)
    kind = "ipv6:[::1]" if ":" in host else "ipv4:127.0.0.1"
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    async with grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/uu")(b"")
    assert caught.value.code() == CODE.UNIMPLEMENTED
    await server.stop(0)
    assert peers[0].startswith(f"{kind}:")


# -- TLS ------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    return issue(tmp_path, trustme.CA())


@pytest.fixture
async def secure(serve, handlers, files):
    watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key)))
    return await serve(tls=following_context(watched, Alpn.H2), **handlers.methods)


async def test_tls_on_grpc_aio(secure, files):
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes())
    async with grpc.aio.secure_channel(secure.target, credentials) as channel:
        body = b"x" * 1_000_000
        assert body == await channel.unary_unary("/t.T/uu")(body)
        call = channel.unary_stream("/t.T/us_endless")(b"")
        for _ in range(20):
            assert await call.read() == b"x" * 100_000
        call.cancel()
        await secure.idle()


@pytest.mark.parametrize(("offered", "agreed"), [(["h2"], "h2"), (["http/1.1"], None)])
async def test_what_is_agreed_on_in_the_handshake(secure, files, offered, agreed):
    context = ssl.create_default_context(cafile=str(files.ca))
    context.set_alpn_protocols(offered)
    _, writer = await asyncio.open_connection("127.0.0.1", secure.port, ssl=context)
    assert agreed == writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.transport.abort()
    await secure.deserted()


async def test_http_1_over_tls_gets_a_text(secure, files):
    context = ssl.create_default_context(cafile=str(files.ca))
    reader, writer = await asyncio.open_connection("127.0.0.1", secure.port, ssl=context)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_plain_text_on_a_port_with_tls(secure):
    reader, writer = await asyncio.open_connection("127.0.0.1", secure.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()
    await secure.deserted()


async def tls_client(stand, files) -> RawClient:
    context = ssl.create_default_context(cafile=str(files.ca))
    context.set_alpn_protocols(["h2"])
    streams = await asyncio.open_connection("127.0.0.1", stand.port, ssl=context, limit=2**12)
    client = RawClient(*streams)
    client.greet({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1})
    return client


async def test_stop_with_a_tls_client_that_does_not_read(secure, files):
    client = await tls_client(secure, files)
    client.h2.increment_flow_control_window(2**30)
    for _ in range(3):
        client.call("/t.T/us_endless")
    await eventually(lambda: secure.server.connections and secure.connection.output.waiting)
    async with asyncio.timeout(PATIENCE):
        await secure.server.stop(0.02)
    await secure.deserted()
    client.abort()


async def test_a_handshake_that_outlasts_the_listening_socket(secure, files):
    """Its connection would be created after GOAWAY was sent to the others; it is closed."""
    running = await tls_client(secure, files)
    running.call("/t.T/uu_waits")
    await eventually(lambda: secure.server.tasks)

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(files.ca))
    context.set_alpn_protocols(["h2"])
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", secure.port)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    writer.write(outgoing.read())
    incoming.write(await reader.read(2**16))  # the handshake is in progress
    stopping = asyncio.create_task(secure.server.stop(10 * PATIENCE))
    await eventually(lambda: secure.server.stopping)
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert len(secure.server.connections) == 1
    assert not stopping.done()
    writer.close()
    running.abort()
    await stopping
    await secure.deserted()


async def test_the_calls_bytes_are_those_that_were_sent(secure, files):
    client = await tls_client(secure, files)
    stream_id = client.begin()
    client.data(stream_id, message(b"x" * 5000), end=True)
    assert (await client.answer(stream_id)).messages == [b"x" * 5000]
    await client.close()


async def test_a_flood_over_tls_ends_its_connection_and_no_other(secure, files):
    client, other = await tls_client(secure, files), await tls_client(secure, files)
    await client.ping()
    running = other.call("/t.T/uu_waits")
    client.send(PingFrame(0, b"12345678").serialize() * 4 * budget.MAX_UNITS)
    await client.hung_up()
    assert client.goaway == 11  # ENHANCE_YOUR_CALM
    await eventually(lambda: len(secure.server.connections) == 1)
    await other.ping()
    assert not other.answers[running].over

"""gRPC over TLS with real handshakes: versions, ciphers, certificates, plain-text peers."""

import asyncio
import contextlib
import ssl

import grpc
import grpc.aio
import pytest
import trustme

from serving.credentials.tls import Alpn, TlsFiles, following_context, watch_tls
from tests.support.waiting import PATIENCE, eventually
from tests.unit.credentials.certificates import issue
from tests.unit.h2grpc.raw_client import RawClient

V1_1, V1_2, V1_3 = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, authority):
    return issue(tmp_path, authority)


class Waiting:
    """A call that waits."""

    def __init__(self):
        self.go_on = asyncio.Event()
        self.cancelled = 0

    async def uu(self, request, context):
        return request

    async def uu_who(self, request, context):
        named = context.auth_context().get("x509_common_name", ())
        return repr((list(named), context.peer_identities())).encode()

    async def uu_waits(self, request, context):
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b"done"


@pytest.fixture
def handlers():
    return Waiting()


@pytest.fixture
def secure(serve, files, handlers):
    async def started(*, client_ca=None):
        watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key), client_ca))
        stand = await serve(
            tls=following_context(watched, Alpn.H2),
            uu=handlers.uu,
            uu_who=handlers.uu_who,
            uu_waits=handlers.uu_waits,
        )
        return stand, watched

    return started


def context_of(files, *, version=None, alpn=("h2",), ciphers=None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.ca))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if ciphers:
        context.set_ciphers(ciphers)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


async def client_of(stand, context, name=None) -> RawClient:
    streams = await asyncio.open_connection(
        "127.0.0.1", stand.port, ssl=context, server_hostname=name or "127.0.0.1"
    )
    client = RawClient(*streams)
    stand.clients.append(client)
    client.greet()
    return client


def tls_of(client) -> ssl.SSLObject:
    return client._writer.get_extra_info("ssl_object")


@pytest.mark.parametrize("version", [V1_2, V1_3])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("alpn", [("h2",), ("http/1.1", "h2"), ()])
async def test_versions_names_and_protocols(secure, files, version, name, alpn):
    """A client that offers no protocol in ALPN is served if it speaks HTTP/2."""
    stand, _ = await secure()
    client = await client_of(stand, context_of(files, version=version, alpn=alpn), name)
    assert (await client.answer(client.call())).messages == [b"x"]
    tls = tls_of(client)
    assert tls.version() == version.name.replace("_", ".")
    assert tls.selected_alpn_protocol() == ("h2" if alpn else None)
    assert tls.compression() is None


@pytest.mark.parametrize(
    ("version", "ciphers"),
    [
        pytest.param(V1_1, "ALL:@SECLEVEL=0", id="tls-1.1"),
        pytest.param(V1_2, "ECDHE+AES+SHA1:ECDHE+AES+SHA256:!AESGCM", id="cbc"),
        pytest.param(V1_2, "kRSA+AESGCM", id="no-ephemeral-keys"),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_what_rfc_9113_prohibits_is_refused(secure, files, version, ciphers):
    """Section 9.2 and appendix A."""
    stand, _ = await secure()
    context = context_of(files, version=version, ciphers=ciphers)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client_of(stand, context)
    await stand.deserted()


@pytest.mark.parametrize("alpn", list(Alpn))
async def test_no_renegotiation(files, alpn):
    """It is forbidden (section 9.2.1) and costs the server far more than the client."""
    watched = watch_tls("test", TlsFiles(str(files.cert), str(files.key)))
    for context in (following_context(watched, alpn), watched.value.contexts[alpn]):
        assert context.options & ssl.OP_NO_RENEGOTIATION


async def test_a_client_shows_a_certificate(secure, files, authority, tmp_path):
    stand, _ = await secure(client_ca=str(files.ca))
    context = context_of(files)
    own = authority.issue_cert("client.test", common_name="the client")
    own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    context.load_cert_chain(tmp_path / "client.pem")
    client = await client_of(stand, context)
    (received,) = (await client.answer(client.call("/t.T/uu_who"))).messages
    assert received == b"([b'the client'], [b'client.test'])"


@pytest.mark.parametrize("version", [V1_2, V1_3])
@pytest.mark.parametrize("shown", [None, "stranger"])
async def test_a_client_without_the_right_one(secure, files, tmp_path, version, shown):
    stand, _ = await secure(client_ca=str(files.ca))
    context = context_of(files, version=version)
    if shown:
        own = trustme.CA().issue_cert("client.test")
        own.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
        context.load_cert_chain(tmp_path / "client.pem")

    # With TLS 1.3 a client learns of it when it reads.
    async def call():
        client = await client_of(stand, context)
        await client.answer(client.call())

    with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
        await call()
    await stand.deserted()


async def test_a_certificate_that_is_not_asked_for_names_nobody(secure, files, tmp_path):
    stand, _ = await secure()
    context = context_of(files)
    trustme.CA().issue_cert("x.test").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "own.pem"
    )
    context.load_cert_chain(tmp_path / "own.pem")
    client = await client_of(stand, context)
    assert (await client.answer(client.call("/t.T/uu_who"))).messages == [b"([], None)"]


async def test_a_new_certificate_while_calls_run(secure, files, handlers, authority, tmp_path):
    stand, watched = await secure()
    context = context_of(files)
    old = await client_of(stand, context)
    running = old.call("/t.T/uu_waits")
    await eventually(lambda: stand.server.tasks)
    issue(tmp_path, authority)
    assert watched.refresh()
    new = await client_of(stand, context)
    assert (await new.answer(new.call())).status == 0
    serials = [tls_of(each).getpeercert()["serialNumber"] for each in (old, new)]
    assert serials[0] != serials[1]
    handlers.go_on.set()
    assert (await old.answer(running)).messages == [b"done"]
    assert (await old.answer(old.call())).status == 0


async def test_an_end_of_tls_ends_the_calls(secure, files, handlers):
    """After close_notify nothing is read, so calls cannot be cancelled and windows cannot grow."""
    stand, _ = await secure()
    client = await client_of(stand, context_of(files))
    client.call("/t.T/uu_waits")
    await eventually(lambda: stand.server.tasks)
    client._writer.close()
    await eventually(lambda: handlers.cancelled)
    await stand.deserted()


async def test_tls_cut_off_ends_the_calls(secure, files, handlers):
    stand, _ = await secure()
    client = await client_of(stand, context_of(files))
    client.call("/t.T/uu_waits")
    await eventually(lambda: stand.server.tasks)
    client.abort()
    await eventually(lambda: handlers.cancelled)
    await stand.deserted()


async def test_a_client_with_tls_on_a_port_without(serve, handlers, files):
    stand = await serve(uu=handlers.uu)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", stand.port, ssl=context_of(files))
    await stand.deserted()


async def test_a_client_without_tls_on_a_port_with_it(secure):
    stand, _ = await secure()
    reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            received = await reader.read()
            # At most a TLS alert; the client does not wait for the handshake's timeout.
            assert received[:1] in {b"", b"\x15"}
    writer.close()
    await stand.deserted()


@pytest.mark.parametrize("with_tls", [True, False])
async def test_channels_of_grpc_that_mix_it_up(secure, serve, files, handlers, with_tls):
    """The status is sent at once, not after a timeout."""
    stand = (await serve(uu=handlers.uu)) if with_tls else (await secure())[0]
    if with_tls:
        credentials = grpc.ssl_channel_credentials(files.ca.read_bytes())
        channel = grpc.aio.secure_channel(stand.target, credentials)
    else:
        channel = grpc.aio.insecure_channel(stand.target)
    async with channel:
        call = channel.unary_unary("/t.T/uu")(b"", timeout=PATIENCE)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE

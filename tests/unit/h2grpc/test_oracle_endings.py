"""Every ending in every form of handler has the same result here and on grpc.aio's server.

``DIFFERENT`` lists deviations with their reasons.
"""

import asyncio
import logging
from urllib.parse import unquote

import grpc
import grpc.aio
import pytest

from serving.h2grpc.server import Server
from tests.unit.h2grpc.conftest import bound_socket, methods
from tests.unit.h2grpc.oracle import ENDINGS, FORMS, behaviours
from tests.unit.h2grpc.raw_client import RawClient, message

CODE = grpc.StatusCode
DIFFERENT = {
    "sets-and-raises": (
        CODE.NOT_FOUND,
        "sends the details set by the handler; grpc.aio sends the exception",
    ),
    "sets-and-aborts-with-metadata": (
        CODE.DATA_LOSS,
        "sends the metadata set before and that of abort; grpc.aio drops the former",
    ),
    "trailing-metadata-a-number": (
        CODE.INTERNAL,
        "as for all invalid metadata; grpc.aio raises an exception, UNKNOWN",
    ),
    "trailing-metadata-grpc-name": (
        CODE.INTERNAL,
        "the prefix grpc- is reserved (doc/PROTOCOL-HTTP2.md); grpc.aio sends such keys",
    ),
}
"""Status on this server and the reason for the difference, by ending."""
UNCOMPARED = {
    "raises-not-implemented": (
        CODE.UNKNOWN,
        "grpc.aio's message ends with a space, which HTTP/2 forbids (RFC 9113, 8.2.1)",
    ),
    "trailing-metadata-connection": (
        CODE.INTERNAL,
        "HTTP/2 forbids this header (RFC 9113, 8.2.2); grpc.aio sends it",
    ),
    "trailing-metadata-upgrade": (CODE.INTERNAL, "as above"),
    "trailing-metadata-text-as-binary": (CODE.OK, "text is sent as UTF-8; grpc.aio never responds"),
}
"""The same for endings where grpc.aio's response is unreadable or missing."""
_MADE_BY_LIBRARY = ("Unexpected", "Invalid metadata", "the server set invalid")


@pytest.fixture(scope="module")
def quiet():
    logger = logging.getLogger("grpc._cython.cygrpc")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.fixture
async def clients(quiet):
    """A connection to this server and one to grpc.aio's."""
    ours, theirs = Server(), grpc.aio.server()
    for server in (ours, theirs):
        server.add_generic_rpc_handlers((methods(**behaviours()),))
    ports = (await ours.start(bound_socket()), theirs.add_insecure_port("127.0.0.1:0"))
    await theirs.start()
    both = [await RawClient.connect(port) for port in ports]
    yield both
    for each in both:
        await each.close()
    await theirs.stop(0)
    await ours.stop(0)


def own(fields: dict[str, str]) -> dict[str, str]:
    names = (":", "grpc-", "content-", "user-", "date")
    return {name: value for name, value in fields.items() if not name.startswith(names)}


async def end_of(client, name):
    """Return status, initial and trailing metadata, messages that count, and the details."""
    stream_id = client.begin(f"/t.T/{name}")
    client.data(stream_id, message(b"x"), end=True)
    answer = await client.answer(stream_id)
    initial, trailing = own(answer.headers), own(answer.trailers)
    if not answer.trailers:
        initial, trailing = {}, initial
    unary = name[1] == "u"
    messages = [] if unary and answer.status else answer.messages
    # An empty message with an error: grpc.aio sends it, no client returns it.
    messages = [each for each in messages if each or answer.status == 0]
    details = unquote(answer.details or "")
    if details.startswith(_MADE_BY_LIBRARY):
        details = "made by the library"
    return answer.status, initial, trailing, messages, details


@pytest.mark.parametrize("form", FORMS)
async def test_calls_end_as_on_grpc_aio(clients, form):
    different = {}
    for ending in ENDINGS.keys() - UNCOMPARED.keys():
        name = f"{form}_{ending}"
        ours, theirs = await asyncio.gather(*(end_of(client, name) for client in clients))
        if ours != theirs:
            different[ending] = (ours, theirs)
    assert {ending: ends[0][0] for ending, ends in different.items()} == {
        ending: code.value[0] for ending, (code, _) in DIFFERENT.items()
    }, different


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", UNCOMPARED)
async def test_what_ends_on_ours_alone(clients, form, ending):
    status, *_ = await end_of(clients[0], f"{form}_{ending}")
    assert status == UNCOMPARED[ending][0].value[0]

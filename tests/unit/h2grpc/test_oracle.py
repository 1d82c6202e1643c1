"""grpc.aio as the oracle: the same servicer and calls on both servers, with equal results.

Differences are intended: ``DIFFERENT`` lists each case with its reason.
"""

import asyncio
import contextlib
import gzip
import logging
import zlib
from urllib.parse import unquote

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2_grpc

from serving.h2grpc.server import Server
from tests.support.waiting import PATIENCE
from tests.unit.h2grpc.conftest import bound_socket, methods
from tests.unit.h2grpc.raw_client import RawClient, message

CODE = grpc.StatusCode
LIMIT = 4096
SET = (("set", "before"),)


class Servicer:
    """Methods that end in all possible ways."""

    async def uu(self, request, context):
        return request

    async def uu_code_and_raise(self, request, context):
        context.set_code(CODE.UNIMPLEMENTED)
        context.set_details("not here")
        context.set_trailing_metadata(SET)
        raise NotImplementedError("not here")

    async def uu_code_and_raise_anything(self, request, context):
        context.set_code(CODE.DATA_LOSS)
        context.set_trailing_metadata(SET)
        raise ValueError("x")

    async def uu_raise(self, request, context):
        context.set_trailing_metadata(SET)
        raise ValueError("x")

    async def uu_code_and_nothing(self, request, context):
        context.set_code(CODE.NOT_FOUND)
        context.set_details("not found")
        context.set_trailing_metadata(SET)

    async def uu_code_and_answer(self, request, context):
        context.set_code(CODE.NOT_FOUND)
        return request

    async def uu_number(self, request, context):
        context.set_code(5)

    async def uu_waits(self, request, context):
        await asyncio.sleep(PATIENCE)

    async def uu_nothing_of_the_sort(self, request, context):
        context.set_code(99)

    async def uu_details(self, request, context):
        context.set_details("fine")
        return request

    async def uu_reads_back(self, request, context):
        context.set_code(CODE.ABORTED)
        context.set_details("so")
        context.set_trailing_metadata(SET)
        text = f"{context.code()} {context.details()} {tuple(context.trailing_metadata())}"
        context.set_code(CODE.OK)
        return text.encode()

    async def uu_initial(self, request, context):
        await context.send_initial_metadata((("early", "x"),))
        context.set_code(CODE.INTERNAL)

    async def uu_abort(self, request, context):
        context.set_trailing_metadata(SET)
        await context.abort(CODE.NOT_FOUND, "gone")

    async def uu_abort_with_metadata(self, request, context):
        await context.abort(CODE.NOT_FOUND, "gone", (("at", "the end"),))

    async def uu_abort_without_details(self, request, context):
        context.set_details("set before")
        await context.abort(CODE.NOT_FOUND)

    async def uu_abort_with_code(self, request, context):
        context.set_code(CODE.DATA_LOSS)
        await context.abort(CODE.NOT_FOUND, "gone")

    async def uu_abort_with_more_metadata(self, request, context):
        context.set_trailing_metadata(SET)
        await context.abort(CODE.NOT_FOUND, "gone", (("at", "the end"),))

    async def us_code(self, request, context):
        await context.write(request)
        context.set_code(CODE.NOT_FOUND)
        context.set_details("no more")

    async def us_code_and_raise(self, request, context):
        await context.write(request)
        context.set_code(CODE.DATA_LOSS)
        context.set_trailing_metadata(SET)
        raise ValueError("x")

    async def us_yields(self, request, context):
        yield request
        context.set_code(CODE.NOT_FOUND)

    async def us_yields_and_raises(self, request, context):
        yield request
        raise ValueError("x")

    async def us_nothing(self, request, context):
        pass

    async def su(self, requests, context):
        return b"%d" % len([request async for request in requests])

    async def su_code(self, requests, context):
        async for _ in requests:
            context.set_code(CODE.NOT_FOUND)

    async def ss(self, requests, context):
        async for request in requests:
            yield request

    async def ss_raises(self, requests, context):
        async for request in requests:
            yield request
            raise ValueError("x")


NAMES = [name for name in vars(Servicer) if not name.startswith("_")]
ELSEWHERE = {"uu_abort_with_more_metadata", "uu_waits"}
"""Methods that tests name themselves."""
ONE = message(b"x")
CASES = {
    **{name: (name, [ONE], {}) for name in NAMES if name not in ELSEWHERE},
    "no-method": ("none", [ONE], {}),
    "no-message-of-a-stream": ("su", [], {}),
    "three-of-a-stream": ("ss", [ONE, ONE + ONE], {}),
    "compressed-without-a-word": ("uu", [message(b"x", compressed=True)], {}),
    "compressed-as-identity": (
        "uu",
        [message(b"x", compressed=True)],
        {"grpc-encoding": "identity"},
    ),
    "damaged": ("uu", [message(b"xxxxxxxx", compressed=True)], {"grpc-encoding": "gzip"}),
    "more-behind-gzip": (
        "uu",
        [message(gzip.compress(b"x") + b"more", compressed=True)],
        {"grpc-encoding": "gzip"},
    ),
    "two-members-of-gzip": (
        "uu",
        [message(gzip.compress(b"x") * 2, compressed=True)],
        {"grpc-encoding": "gzip"},
    ),
    "more-behind-deflate": (
        "uu",
        [message(zlib.compress(b"x") + b"more", compressed=True)],
        {"grpc-encoding": "deflate"},
    ),
    "empty-and-compressed": (
        "uu",
        [message(b"", compressed=True)],
        {"grpc-encoding": "gzip"},
    ),
    "content-type-in-capitals": ("uu", [ONE], {"content-type": "Application/GRPC"}),
    "too-large": ("uu", [message(b"x" * (LIMIT + 1))], {}),
    "no-time": ("uu", [ONE], {"grpc-timeout": "0n"}),
    "no-seconds": ("uu", [ONE], {"grpc-timeout": "0S"}),
    "time-without-a-unit": ("uu", [ONE], {"grpc-timeout": "x"}),
    "time-below-zero": ("uu", [ONE], {"grpc-timeout": "-1n"}),
    "not-base64": ("uu", [ONE], {"x-bin": "!!!"}),
}

_SPEC = "doc/statuscodes.md"
_SILENT = f"{_SPEC}; grpc.aio never responds"
DIFFERENT = {
    "unary-without-a-message": ("uu", [], {}, CODE.UNIMPLEMENTED, _SILENT),
    "stream-without-a-request": ("us_nothing", [], {}, CODE.UNIMPLEMENTED, _SILENT),
    "two-messages": (
        # A method that has ended before the second one arrives cannot notice it.
        "uu_waits",
        [ONE, ONE],
        {},
        CODE.UNIMPLEMENTED,
        f"{_SPEC}; grpc.aio uses the first one",
    ),
    "two-messages-in-one-frame": (
        "us_yields",
        [ONE + ONE],
        {},
        CODE.UNIMPLEMENTED,
        f"{_SPEC}; as above",
    ),
    "truncated-message": ("uu", [ONE[:-1]], {}, CODE.INTERNAL, "grpc.aio never responds"),
    "truncated-prefix": ("uu", [ONE[:3]], {}, CODE.INTERNAL, "grpc.aio never responds"),
    "truncated-message-in-a-stream": (
        "su",
        [ONE + ONE[:-1]],
        {},
        CODE.INTERNAL,
        "grpc.aio ignores the incomplete message",
    ),
    "unknown-compressed-flag": (
        "uu",
        [b"\2" + ONE[1:]],
        {},
        CODE.INTERNAL,
        "doc/PROTOCOL-HTTP2.md defines 0 and 1; grpc.aio treats other values as 0",
    ),
    "unknown-compression": (
        "uu",
        [message(b"x", compressed=True)],
        {"grpc-encoding": "snappy"},
        CODE.UNIMPLEMENTED,
        "doc/compression.md; grpc.aio returns INTERNAL",
    ),
    "timeout-of-nine-digits": (
        "uu",
        [ONE],
        {"grpc-timeout": "123456789n"},
        CODE.INTERNAL,
        "doc/PROTOCOL-HTTP2.md allows at most eight",
    ),
    "timeout-with-a-space": (
        "uu",
        [ONE],
        {"grpc-timeout": "1 S"},
        CODE.INTERNAL,
        "doc/PROTOCOL-HTTP2.md allows none; grpc.aio accepts it",
    ),
    "another-content-type": (
        "uu",
        [ONE],
        {"content-type": "application/json"},
        CODE.INTERNAL,
        "HTTP status 415 (doc/PROTOCOL-HTTP2.md); grpc.aio serves any type",
    ),
    "several-values-of-binary-metadata": (
        "uu",
        [ONE],
        {"x-bin": "AAE=,/w=="},
        CODE.OK,
        "doc/PROTOCOL-HTTP2.md requires a split at commas; grpc.aio returns INTERNAL",
    ),
    "binary-metadata-with-unused-bits": (
        "uu",
        [ONE],
        {"x-bin": "AB"},
        CODE.OK,
        "the bits are ignored, as by most decoders; grpc.aio returns INTERNAL",
    ),
}


async def end_of(port, name, chunks, more):
    """Return the result of a call: status, metadata, messages if they count, details."""
    client = await RawClient.connect(port)
    try:
        stream_id = client.begin(f"/t.T/{name}", list(more.items()))
        for chunk in chunks:
            client.data(stream_id, chunk)
        client.h2.end_stream(stream_id)
        client.send()
        answer = await client.answer(stream_id)
    finally:
        await client.close()
    fields = {**answer.headers, **answer.trailers}
    metadata = {
        name: value
        for name, value in fields.items()
        if not name.startswith((":", "grpc-", "content-", "user-", "date"))
    }
    # grpc.aio sends an empty message with a status that is not OK; no client shows it.
    messages = [each for each in answer.messages if each or answer.status == 0]
    return answer.status, metadata, messages, unquote(answer.details or "")


@pytest.fixture
async def servers():
    """Ports of this server and of grpc.aio's."""
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    handlers = {name: getattr(Servicer(), name) for name in NAMES}
    ours = Server(max_message_bytes=LIMIT)
    theirs = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT)])
    for server in (ours, theirs):
        server.add_generic_rpc_handlers((methods(**handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(health_pb2_grpc.HealthServicer(), server)
    port = await ours.start(bound_socket())
    their_port = theirs.add_insecure_port("127.0.0.1:0")
    await theirs.start()
    yield port, their_port
    await theirs.stop(0)
    await ours.stop(0)


@pytest.mark.parametrize("case", CASES)
async def test_calls_end_as_grpc_aio_ends_them(servers, case):
    ours, theirs = await asyncio.gather(*(end_of(each, *CASES[case]) for each in servers))
    assert ours[:3] == theirs[:3]
    assert bool(ours[3]) >= bool(theirs[3])


@pytest.mark.parametrize("case", DIFFERENT)
async def test_calls_that_end_otherwise_on_purpose(servers, case):
    name, chunks, more, code, reason = DIFFERENT[case]
    assert reason
    status, *_ = await end_of(servers[0], name, chunks, more)
    assert status == code.value[0]


async def test_a_method_that_a_servicer_leaves_out(servers):
    """The generated base method: set_code, set_details, raise."""
    received = []
    for port in servers:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for name in ("Check", "List"):
                call = channel.unary_unary(f"/grpc.health.v1.Health/{name}")
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call(b"")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(b"")
                received.append(caught.value.code())
    assert received == [CODE.UNIMPLEMENTED] * 4

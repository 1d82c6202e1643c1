"""connectrpc, Connect's Python client, with the gRPC protocol."""

import asyncio
import contextlib
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from connectrpc.client import ConnectClient, ResponseMetadata
from connectrpc.compat import google_protobuf_binary_codec
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType
from connectrpc.request import Headers
from pyqwest import Client as HttpClient
from pyqwest import HTTPTransport, HTTPVersion

from tests.integration.h2grpc.clients.common import Call, Client, Outcome, main

KINDS = {
    "unary_unary": StreamType.UNARY,
    "unary_stream": StreamType.SERVER_STREAM,
    "stream_unary": StreamType.CLIENT_STREAM,
    "stream_stream": StreamType.BIDI_STREAM,
}


class Connectrpc(Client):
    """The asynchronous client; requests and answers of streams are iterators."""

    def open(self) -> Any:
        """Return a connection, and a client on it for plain and for compressed requests."""
        pem = {name: Path(path).read_bytes() for name, path in (self.tls or {}).items()}
        transport = HTTPTransport(
            http_version=HTTPVersion.HTTP2,
            tls_ca_cert=pem.get("ca"),
            tls_cert=pem.get("cert"),
            tls_key=pem.get("key"),
        )
        http = HttpClient(transport)
        scheme = "http" if self.tls is None else "https"
        return transport, {
            compressed: ConnectClient(
                f"{scheme}://{self.target['address']}",
                codec=google_protobuf_binary_codec(),
                protocol=ProtocolType.GRPC,
                send_compression=GzipCompression() if compressed else None,
                http_client=http,
            )
            for compressed in (True, False)
        }

    async def close(self, channel: Any) -> None:
        transport, clients = channel
        for each in clients.values():
            await each.close()
        await transport.aclose()

    async def perform(self, channel: Any, call: Call, outcome: Outcome) -> None:
        _, service, name = call.path.split("/")
        method = MethodInfo(
            name=name,
            service_name=service,
            input=call.request_class,
            output=call.answer_class,
            idempotency_level=IdempotencyLevel.UNKNOWN,
            stream_type=KINDS[call.kind],
        )
        headers = Headers()
        for key, value in call.metadata:
            headers.add(key, b64encode(value).decode() if isinstance(value, bytes) else value)
        more = {"method": method, "headers": headers, "timeout_ms": int(call.timeout * 1000)}
        with ResponseMetadata() as metadata:
            try:
                await self._talk(channel[1][call.compressed], more, call, outcome)
            except ConnectError as error:
                code = error.code.name
                outcome.code = {"CANCELED": "CANCELLED"}.get(code, code)
                outcome.details = error.message
        if call.cancel_after is None:
            outcome.keep(metadata.headers.allitems(), metadata.trailers.allitems())
            if not outcome.replies:  # without a message, one header block is both
                outcome.initial = [each for each in outcome.initial if each not in outcome.trailing]

    async def _talk(
        self, client: ConnectClient, more: dict[str, Any], call: Call, outcome: Outcome
    ) -> None:
        if call.kind == "unary_unary":
            outcome.got(await client.execute_unary(request=call.requests[0], **more))
            return
        if call.kind == "unary_stream":
            async for message in client.execute_server_stream(request=call.requests[0], **more):
                outcome.got(message)
            return
        stream = Stream(call, outcome)
        if call.kind == "stream_unary":
            answers = client.execute_client_stream(request=stream.requests(), **more)
            task = asyncio.ensure_future(stream.one(answers))
        else:
            answers = client.execute_bidi_stream(request=stream.requests(), **more)
            task = asyncio.ensure_future(stream.all(answers))
        if call.cancel_after is not None:
            await stream.until(call.cancel_after)
            if not call.lockstep:
                await stream.sent.wait()
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Stream:
    """The requests of a stream, some of which wait for answers."""

    def __init__(self, call: Call, outcome: Outcome) -> None:
        self.sent = asyncio.Event()
        self._call = call
        self._outcome = outcome
        self._arrived = asyncio.Condition()

    async def requests(self) -> AsyncIterator[Any]:
        """Yield each request when it is due."""
        wanted = 0
        for number, request in enumerate(self._call.requests):
            yield request
            if self._call.lockstep:
                wanted += self._call.answers[number]
                await self.until(wanted)
        self.sent.set()
        if self._call.unfinished or self._call.cancel_after is not None:
            await asyncio.get_running_loop().create_future()

    async def until(self, count: int) -> None:
        """Wait for a number of answers."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self._outcome.replies) >= count)

    async def one(self, answer: Any) -> None:
        """Record the only answer."""
        self._outcome.got(await answer)

    async def all(self, answers: AsyncIterator[Any]) -> None:
        """Record all answers."""
        async for each in answers:
            async with self._arrived:
                self._outcome.got(each)
                self._arrived.notify_all()


if __name__ == "__main__":
    main(Connectrpc)

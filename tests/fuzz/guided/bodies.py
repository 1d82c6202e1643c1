"""JSON bodies through the whole REST app, and protobuf through the gRPC services.

A router with fake ranks in this process; requests go straight into the ASGI app, calls into a
connection without a socket. A response blames the request, in the form of its API, or serves it.
"""

import asyncio
import json
import random
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived

from serving.h2grpc.connection import Connection
from tests.fuzz import grpc_cases, mutators, odd, rest_cases
from tests.fuzz.guided.finding import demand
from tests.fuzz.guided.transport import Transport
from tests.fuzz.verdict import grpc_problem, rest_problem
from tests.integration.edge.stand import Stand, stand_settings, standing
from tests.support.waiting import eventually
from tests.unit.h2grpc.raw_client import ClientH2, message, request

PACKAGES = ("serving.edge", "serving.fleet", "serving.admission", "serving.routing")
PATHS = tuple(dict.fromkeys(path for path, _ in rest_cases.GOOD))
_PIECES, _LEAVES = 1, 2
"""Flags in the second byte: the body arrives in pieces; disconnect when the response begins."""
_TURNS, _FAST_TURNS = 20_000, 1_000


async def _start(size: int) -> tuple[Any, Stand]:
    settings = stand_settings(
        group={"data_parallel": size},
        engine={"max_model_len": 256},
        router={"max_body_bytes": 2**18, "keepalive_interval": 5},
    )
    held = standing(settings)
    return held, await held.__aenter__()


class Bodies:
    """Bodies of REST requests; the first byte selects the route."""

    name = "bodies"
    packages = PACKAGES

    async def open(self) -> None:
        self._held, self.stand = await _start(1)
        self.app: Any = self.stand.router.rest.config.app
        self.fields = {
            name: values for name, values in rest_cases.DANGEROUS.items() if name != "prompt_embeds"
        }

    async def close(self) -> None:
        await self._held.__aexit__(None, None, None)

    def seeds(self) -> Iterable[bytes]:
        for path, body in rest_cases.GOOD:
            for stream in (False, True):
                content = json.dumps({**body, "stream": stream} if stream else body).encode()
                yield bytes((PATHS.index(path), stream)) + content

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        head, body = data[:2].ljust(2, b"\0"), data[2:]
        kind = rng.random()
        if kind < 0.05:
            head = bytes((rng.randrange(len(PATHS)), rng.randrange(4)))
        if kind < 0.2:
            return head + mutators.bytes_changed(rng, body)
        if kind < 0.6:
            return head + mutators.json_changed(rng, body)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            return head + mutators.bytes_changed(rng, body)
        changed = odd.mutate(rng, value, self.fields)
        return head + json.dumps(changed).encode("utf-8", "surrogatepass")

    async def run(self, data: bytes) -> None:
        path = PATHS[data[0] % len(PATHS)] if data else PATHS[0]
        flags, body = data[1] if len(data) > 1 else 0, data[2:]
        status, headers, content = await self.ask(path, body, flags)
        if not flags & _LEAVES:
            problem = rest_problem(status, content, has_deadline=False)
            demand(problem is None, f"{path}: {problem}")
            check_form(path, status, headers, content)
        await eventually(lambda: self.stand.idle, "all requests to end")

    async def ask(self, path: str, body: bytes, flags: int) -> tuple[int, dict[str, str], bytes]:
        """Send one request into the app; returns status, headers and body."""
        size = max(len(body) // 7, 1) if flags & _PIECES else len(body) or 1
        parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        left, status, headers, content = asyncio.Event(), 0, {}, bytearray()

        async def receive() -> dict[str, Any]:
            if parts:
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                headers.update((name.decode(), value.decode()) for name, value in event["headers"])
            else:
                content.extend(event.get("body", b""))
            if flags & _LEAVES:
                left.set()

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"x"),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        await self.app(scope, receive, send)
        return status, headers, bytes(content)


def check_form(path: str, status: int, headers: dict[str, str], content: bytes) -> None:
    """Check that an answer has the form of its API: typed errors, complete streams of JSON."""
    demand(status in {200, 400, 401, 404, 413, 415, 422, 501}, f"{path}: status {status}")
    if headers.get("content-type", "").startswith("text/event-stream"):
        for block in content.split(b"\n\n"):
            for line in block.split(b"\n"):
                kind, _, value = line.partition(b": ")
                demand(kind in {b"", b"data", b"event", b":"}, f"{path}: a line {line[:100]!r}")
                if kind == b"data" and value != b"[DONE]":
                    _json(path, value)
        demand(content.endswith(b"\n\n"), f"{path}: the last event is truncated")
        return
    whole = _json(path, content)
    if status != 200:
        error = whole.get("error") if isinstance(whole, dict) else None
        demand(isinstance(error, dict), f"{path}: {status} without an error: {content[:200]!r}")
        demand(error.get("type") and error.get("message"), f"{path}: an empty error {error}")


def _refused(constant: str) -> Any:
    demand(condition=False, what=f"{constant} is not JSON")


def _json(path: str, data: bytes) -> Any:
    try:
        return json.loads(data, parse_constant=_refused)
    except ValueError:
        demand(condition=False, what=f"{path}: invalid JSON: {data[:200]!r}")


class Messages:
    """Bytes of gRPC requests; the first byte selects the method."""

    name = "messages"
    packages = ("serving.edge", "serving.h2grpc", "serving.fleet")

    def __init__(self) -> None:
        self.methods = [
            method
            for service in grpc_cases.SERVICES
            for method in service.methods
            if method.name not in grpc_cases._CHANGES_STATE
        ]

    async def open(self) -> None:
        self._held, self.stand = await _start(1)

    async def close(self) -> None:
        await self._held.__aexit__(None, None, None)

    def seeds(self) -> Iterable[bytes]:
        for number, method in enumerate(self.methods):
            for good in grpc_cases.GOOD.get(method.name, ()):
                yield bytes((number,)) + good.SerializeToString()
            yield bytes((number,))

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        if not data or rng.random() < 0.05:
            data = bytes((rng.randrange(len(self.methods)),)) + data[1:]
        kind = GetMessageClass(self.methods[data[0] % len(self.methods)].input_type)
        try:
            given = kind.FromString(data[1:])
        except DecodeError:
            return data[:1] + mutators.bytes_changed(rng, data[1:])
        if rng.random() < 0.2:
            return data[:1] + mutators.bytes_changed(rng, data[1:])
        for _ in range(rng.choice((1, 1, 2, 4))):
            grpc_cases._change(rng, given)
        return data[:1] + given.SerializeToString()

    async def run(self, data: bytes) -> None:
        method = self.methods[data[0] % len(self.methods)] if data else self.methods[0]
        path = f"/{method.containing_service.full_name}/{method.name}"
        status, details = await self.call(path, data[1:])
        problem = grpc_problem(status, details)
        demand(problem is None, f"{path}: {problem}")
        await eventually(lambda: self.stand.idle, "all requests to end")

    async def call(self, path: str, content: bytes) -> tuple[grpc.StatusCode, str]:
        """Make one call on a separate connection; return the status."""
        server: Any = self.stand.router.grpc.server
        made = Connection(server)
        transport = Transport(made)
        client = ClientH2()
        made.connection_made(transport)
        client.initiate_connection()
        client.increment_flow_control_window(2**24)
        client.send_headers(1, request(path))
        framed = message(content)
        made.data_received(client.data_to_send())
        while framed:
            room = min(client.local_flow_control_window(1), client.max_outbound_frame_size)
            client.send_data(1, framed[:room], end_stream=len(framed) <= room)
            framed = framed[room:]
            made.data_received(client.data_to_send())
            if framed:
                await asyncio.sleep(0)
                client.receive_data(bytes(transport.written))
                transport.written.clear()
        status, details, ended = None, "", False
        for turn in range(_TURNS):
            # A thread may be compiling the request's grammar.
            await asyncio.sleep(0 if turn < _FAST_TURNS else 0.001)
            for event in client.receive_data(bytes(transport.written)):
                if isinstance(event, ResponseReceived | TrailersReceived):
                    fields = dict(event.headers)
                    status = fields.get("grpc-status", status)
                    details = fields.get("grpc-message", details)
                elif isinstance(event, DataReceived) and event.flow_controlled_length:
                    client.acknowledge_received_data(event.flow_controlled_length, 1)
                ended |= isinstance(event, StreamEnded)
            transport.written.clear()
            if (more := client.data_to_send()) and not ended:
                made.data_received(more)
            if ended:
                break
        transport.close()
        await asyncio.sleep(0)
        demand(status is not None and ended, f"{path}: no status")
        assert status is not None
        number = int(status)
        return next(code for code in grpc.StatusCode if code.value[0] == number), details

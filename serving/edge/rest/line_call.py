"""Sends the requests of batch lines through the REST app of this process, without a connection.

They pass through the same middleware, validation, admission, metrics and ledger as clients'
requests. Instead of an API key, they carry the principal that created the batch.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from serving.batch.line_requests import LineRequest, LineResponse
from serving.edge.auth.authenticator import Principal
from serving.edge.auth.key_file import Role
from serving.edge.request_headers import REQUEST_ID
from serving.ledger.records import BATCH_PROTOCOL
from serving.request_context import Priority, ReasoningPolicy, RequestContext, Yielding

IN_PROCESS = "moe_serving.in_process"
"""Key of an ASGI scope that holds an ``InProcess``. A client cannot set it, because the server
creates the scope of a client's request."""

_ABORT_SECONDS = 5.0
"""Maximum time for a cancelled request to end, seconds."""


@dataclass(frozen=True, slots=True)
class InProcess:
    """Origin of a request that did not arrive over the network."""

    principal: Principal
    context: RequestContext
    protocol: str = BATCH_PROTOCOL
    """Protocol name in logs and in the ledger."""


class LineCall:
    """Implements ``serving.batch.line_requests.SendLine``."""

    def __init__(
        self,
        app: ASGIApp,
        yielding: Yielding,
        reasoning_of: Callable[[str | None], ReasoningPolicy | None] = lambda _: None,
    ) -> None:
        """Create the function that sends requests.

        Args:
            app: The REST app with its middleware.
            yielding: Decides when the requests run.
            reasoning_of: Returns the reasoning policy of a key, by its id.
        """
        self._app = app
        self._yielding = yielding
        self._reasoning_of = reasoning_of

    async def __call__(self, request: LineRequest) -> LineResponse:
        """Return the response; cancelling the call aborts the request on its rank."""
        priorities = frozenset({Priority.BATCH})
        roles = frozenset({Role.USER})
        principal = Principal(request.tenant, roles, priorities, request.key_id)
        context = RequestContext(
            tenant=request.tenant,
            key_id=request.key_id,
            priority=Priority.BATCH,
            roles=frozenset(role.value for role in roles),
            deadline=request.deadline,
            yielding=self._yielding,
            reasoning=self._reasoning_of(request.key_id),
        )
        exchange = _Exchange(request.body)
        scope = _scope(request, InProcess(principal, context))
        running = asyncio.ensure_future(self._app(scope, exchange.receive, exchange.send))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            # vLLM's handlers run in separate tasks, which only a disconnect cancels.
            exchange.disconnected.set()
            await asyncio.wait({running}, timeout=_ABORT_SECONDS)
            running.cancel()
            raise
        return LineResponse(exchange.status, b"".join(exchange.parts))


def _scope(request: LineRequest, origin: InProcess) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": request.endpoint,
        "raw_path": request.endpoint.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(request.body)).encode()),
            (REQUEST_ID.encode(), request.request_id.encode()),
        ],
        "client": None,
        "server": None,
        "state": {},
        IN_PROCESS: origin,
    }


class _Exchange:
    """The body of a request and the parts of its response."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self.disconnected = asyncio.Event()
        self.status = 0
        self.parts: list[bytes] = []

    async def receive(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            await self.disconnected.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.parts.append(message.get("body", b""))

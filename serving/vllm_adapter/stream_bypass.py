"""Streamed answers take a short cut: from vLLM's generator to the exchange, event by event.

Starlette hands each part of a response through every middleware of the app, and none of them looks
at the parts of an event stream: CORS and the error handlers are done with it once its start is
out. The start and the end still go their way.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

EXCHANGE = "moe_serving.exchange"
"""Name in a request's scope of the ``exchange.Exchange`` that it is on."""


class EventStream(StreamingResponse):
    """A streaming response of vLLM's, on the short cut."""

    _push: Callable[[bytes], Awaitable[None]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        self._push = scope[EXCHANGE].push
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send start, events and end."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        push = self._push
        async for event in self.body_iterator:
            await push(event.encode() if isinstance(event, str) else bytes(event))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def shorten_streams(app: FastAPI, paths: frozenset[str]) -> None:
    """Let the routes' streamed answers take the short cut.

    Raises:
        RuntimeError: a path is no route that FastAPI calls; this version is not supported.
    """
    routes = {route.path: route for route in app.routes if isinstance(route, APIRoute)}
    for path in paths:
        route = routes.get(path)
        if route is None or route.dependant.call is None:
            raise RuntimeError(f"vLLM's app has no route {path} that answers by a function")
        route.dependant.call = _shortened(route.dependant.call)


def _shortened(answer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(answer)
    async def shortened(*args: Any, **kwargs: Any) -> Any:
        response = await answer(*args, **kwargs)
        if type(response) is StreamingResponse:
            response.__class__ = EventStream
        return response

    return shortened

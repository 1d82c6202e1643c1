"""Events of streamed responses bypass the app's middleware.

Starlette passes each part of a response through every middleware of the app. None of them needs the
parts of an event stream: CORS and error handlers are done once the response has started. Events
therefore go directly to the router's ``ResponseStream``; the start and the end of the response take
the normal path.
"""

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

RESPONSE_STREAM = "moe_serving.response_stream"
"""Key of an ASGI scope that holds the request's ``ResponseStream`` (``serving.edge.rest``)."""


class EventStream(StreamingResponse):
    """A streaming response of vLLM whose events bypass the middleware."""

    _push: Callable[[bytes], Awaitable[None]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        self._push = scope[RESPONSE_STREAM].push
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the start, the events and the end of the response."""
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


def bypass_middleware(app: FastAPI, paths: frozenset[str]) -> None:
    """Let the streamed responses of some routes bypass the app's middleware.

    Args:
        app: vLLM's app.
        paths: paths of the routes.

    Raises:
        RuntimeError: a path has no route with an endpoint function.
    """
    routes = {route.path: route for route in app.routes if isinstance(route, APIRoute)}
    for path in paths:
        route = routes.get(path)
        if route is None or route.dependant.call is None:
            raise RuntimeError(
                f"vLLM's app has no endpoint function for {path}; this version is not supported"
            )
        route.dependant.call = _bypassing(route.dependant.call)


def _bypassing(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def bypassing(*args: Any, **kwargs: Any) -> Any:
        response = await endpoint(*args, **kwargs)
        if type(response) is StreamingResponse:
            response.__class__ = EventStream
        return response

    return bypassing

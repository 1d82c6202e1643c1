"""vLLM's routes: which are kept, body validation, handler cancellation, response streams.

Validation stops at the first invalid item of a list. pydantic reports every invalid item, for every
type that the item might have. An input of 5,000 invalid items produces 300,000 errors, which blocks
the event loop for seconds. vLLM's validators access fields before pydantic has checked their types,
so a string in place of an object raises ``AttributeError``. Such exceptions become
``InvalidRequest``: status 400, not 500.

Handlers end when their client disconnects or the server cancels them. vLLM's ``with_cancellation``
runs each handler in a separate task and waits for it or for the disconnection; if the server
cancels the wait, at the end of its grace period, the handler continues without an owner. Here, the
handler runs in the task of the request, and one other task cancels it when the client disconnects.

Events of streamed responses bypass the app's middleware. Starlette passes each part of a response
through every middleware of the app. None of them needs the parts of an event stream: CORS and error
handlers are done once the response has started. Events therefore go directly to the router's
``ResponseStream``; the start and the end of the response take the normal path.

/invocations loses its decorators. SageMaker's package replaces the model of every request with the
LoRA adapter of a header, so without the header any model would be answered by the first one; and
its sessions are files of one server.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic_core import SchemaValidator, ValidationError
from starlette.responses import StreamingResponse
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.serve.sagemaker import api_router as sagemaker
from vllm.entrypoints.serve.utils.api_utils import with_cancellation
from vllm.exceptions import VLLMError

from serving.errors import InvalidRequest
from serving.h2grpc.turns import TaskTurns
from serving.vllm_adapter.error_response import UNREADABLE
from serving.vllm_adapter.long_answers import LongAnswerError, response_in_parts

KEPT_ROUTES = frozenset(
    {
        "/v1/models",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        # SageMaker's single route for all of /v1; the fields of the body select the API.
        "/invocations",
        "/health",
        "/version",
    }
)
"""Routes of vLLM that the router serves.

All others are removed: routes that control a single engine (LoRA loading, elastic EP, profiling,
sleep), vLLM's metrics and load pages, which would describe the router as an engine, and the
token-in-token-out protocol with its renderers, which vLLM answers with 403 unless it is enabled."""

RESPONSE_STREAM = "moe_serving.response_stream"
"""Key of an ASGI scope that holds the request's ``ResponseStream`` (``serving.edge.rest``)."""

_LONG_ANSWERS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/tokenize",
        "/invocations",
    }
)
"""Routes whose handlers return ``long_answers.MaybeLong``."""

Handler = Callable[..., Awaitable[Any]]

_LISTS = frozenset({"list", "set", "frozenset", "tuple"})


def remove_routes(app: FastAPI) -> None:
    """Remove all routes that are not in ``KEPT_ROUTES``.

    Raises:
        RuntimeError: vLLM's app lacks a route in ``KEPT_ROUTES``.
    """
    app.router.routes[:] = [route for route in app.router.routes if _path(route) in KEPT_ROUTES]
    missing = KEPT_ROUTES - {_path(route) for route in app.router.routes}
    if missing:
        raise RuntimeError(
            f"vLLM's OpenAI app has no {', '.join(sorted(missing))}; "
            "this vLLM version is not supported"
        )


def _path(route: BaseRoute) -> str:
    return str(getattr(route, "path", ""))


def undecorate_invocations(app: FastAPI) -> None:
    """Replace the endpoint of /invocations with vLLM's function inside SageMaker's decorators.

    Raises:
        RuntimeError: vLLM's endpoint is not decorated as expected; this version is not supported.
    """
    (route,) = [each for each in app.routes if _path(each) == "/invocations"]
    assert isinstance(route, APIRoute)
    endpoint: Any = route.dependant.call
    while endpoint is not None and endpoint.__module__ != sagemaker.__name__:
        endpoint = inspect.getclosurevars(endpoint).nonlocals.get("func")
    if endpoint is None:
        raise RuntimeError("vLLM's /invocations is not supported in this version")
    route.dependant.call = endpoint


def fail_fast(app: FastAPI) -> None:
    """Replace the body validators of an app's routes.

    Raises:
        RuntimeError: This version of FastAPI stores the validators elsewhere.
    """
    changed = sum(map(_change, _fields(app.router.routes)))
    if not changed:
        raise RuntimeError(
            "FastAPI's routes have no body field to replace; this version is not supported"
        )


def _fields(routes: Iterable[BaseRoute]) -> Iterable[Any]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield from route.dependant.body_params
            if route.body_field is not None:
                yield route.body_field


def _change(field: Any) -> bool:
    adapter = getattr(field, "_type_adapter", None)
    if adapter is None:
        return False
    adapter.validator = _BodyValidator(_with_first_error(adapter.core_schema))
    return True


class _BodyValidator:
    """Validates a body like pydantic; unexpected exceptions become ``InvalidRequest``."""

    def __init__(self, schema: Any) -> None:
        self._validator = SchemaValidator(schema, _use_prebuilt=False)

    def validate_python(self, value: Any, **options: Any) -> Any:
        """Return the validated body.

        Raises:
            ValidationError: pydantic rejects the body.
            VLLMError: One of vLLM's validators rejects it.
            InvalidRequest: One of vLLM's validators failed with another exception.
        """
        try:
            return self._validator.validate_python(value, **options)
        except (ValidationError, VLLMError):
            raise
        except Exception as error:
            raise InvalidRequest(UNREADABLE) from error


def _with_first_error(schema: Any) -> Any:
    """Return a pydantic schema whose lists stop at the first invalid item."""
    if isinstance(schema, dict):
        found = {name: _with_first_error(each) for name, each in schema.items()}
        if isinstance(kind := found.get("type"), str) and kind in _LISTS:
            found["fail_fast"] = True
        return found
    if isinstance(schema, list | tuple):
        return type(schema)(map(_with_first_error, schema))
    return schema


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
        paths: Paths of the routes.

    Raises:
        RuntimeError: A path has no route with an endpoint function.
    """
    _wrap_endpoints(app, paths, _bypassing)


def send_long_answers_in_parts(app: FastAPI, turns: TaskTurns) -> None:
    """Encode the long answers of ``_LONG_ANSWERS`` in slices.

    Args:
        app: vLLM's app.
        turns: Shared by all requests with long steps.

    Raises:
        RuntimeError: A path has no route with an endpoint function.
    """
    _wrap_endpoints(app, _LONG_ANSWERS, functools.partial(_in_parts, turns=turns))


def _wrap_endpoints(
    app: FastAPI, paths: frozenset[str], wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    routes = {route.path: route for route in app.routes if isinstance(route, APIRoute)}
    for path in paths:
        route = routes.get(path)
        if route is None or route.dependant.call is None:
            raise RuntimeError(
                f"vLLM's app has no endpoint for {path}; this vLLM version is not supported"
            )
        route.dependant.call = wrap(route.dependant.call)


def _bypassing(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def bypassing(*args: Any, **kwargs: Any) -> Any:
        response = await endpoint(*args, **kwargs)
        if type(response) is StreamingResponse:
            response.__class__ = EventStream
        return response

    return bypassing


def _in_parts(endpoint: Callable[..., Any], turns: TaskTurns) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def in_parts(*args: Any, **kwargs: Any) -> Any:
        try:
            return await endpoint(*args, **kwargs)
        except LongAnswerError as long:
            return await response_in_parts(long, turns)

    return in_parts


def cancel_with_clients(app: FastAPI) -> None:
    """Replace vLLM's wrapper of route handlers.

    Raises:
        RuntimeError: No route has the wrapper; this vLLM version is not supported.
    """
    wrapper = with_cancellation(_nothing).__code__
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    wrapped = [each for each in routes if getattr(each.dependant.call, "__code__", None) is wrapper]
    if not wrapped:
        raise RuntimeError(
            "vLLM's routes do not use with_cancellation; this vLLM version is not supported"
        )
    for route in wrapped:
        route.dependant.call = ending_with_client(route.dependant.call.__wrapped__)  # type: ignore[union-attr]


def ending_with_client(handler: Handler) -> Handler:
    """Wrap a handler with the parameter ``raw_request``, whose body has been read.

    If the client disconnects, the result is what the handler returns when it is cancelled, or None.
    """

    @functools.wraps(handler)
    async def ending(*args: Any, raw_request: Request, **kwargs: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        cancelled_before = task.cancelling()
        client = asyncio.create_task(_cancel_when_gone(raw_request, task))
        try:
            result = await handler(*args, raw_request=raw_request, **kwargs)
        except asyncio.CancelledError:
            if not _is_gone(client) or task.uncancel() > cancelled_before:
                raise  # cancelled by the server
            return None
        finally:
            client.cancel()
        if _is_gone(client):
            task.uncancel()
        return result

    return ending


async def _cancel_when_gone(request: Request, task: "asyncio.Task[Any]") -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def _is_gone(client: "asyncio.Task[None]") -> bool:
    return client.done() and not client.cancelled() and client.exception() is None


async def _nothing() -> None:
    """Do nothing; this handler serves to obtain the code of vLLM's wrapper."""

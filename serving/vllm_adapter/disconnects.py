"""Handlers of vLLM's routes end when their client disconnects or the server cancels them.

vLLM's ``with_cancellation`` runs each handler in a task of its own and waits for it or for the
disconnection. If the server cancels the wait, at the end of its grace period, the handler continues
without an owner. Here, the handler runs in the task of the request, and a second task cancels it
when the client disconnects: one task less for each request.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

Handler = Callable[..., Awaitable[Any]]


def cancel_with_clients(app: FastAPI) -> None:
    """Replace vLLM's wrapper of route handlers.

    Raises:
        RuntimeError: no route has the wrapper; this vLLM version is not supported.
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

    The result of a handler whose client disconnects is what it returns when it is cancelled, or
    None.
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
    """A handler, to get the code of vLLM's wrapper."""

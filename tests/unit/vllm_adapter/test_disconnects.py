import asyncio

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from vllm.entrypoints.serve.utils.api_utils import with_cancellation

from serving.vllm_adapter.routes import cancel_with_clients, ending_with_client
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.asyncio


class Client:
    """The request of a client that disconnects when ``gone`` is set."""

    def __init__(self):
        self.gone = asyncio.Event()
        self.app = FastAPI()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}


class Handler:
    def __init__(self, *, result_if_cancelled=None):
        self.began, self.go_on = asyncio.Event(), asyncio.Event()
        self.cancelled = False
        self._result = result_if_cancelled

    async def __call__(self, request, raw_request):
        self.began.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            if self._result is None:
                raise
            return self._result
        return f"answer to {request}"


@pytest.fixture
def client():
    return Client()


@pytest.fixture(autouse=True)
async def nothing_runs_on():
    yield
    for _ in range(3):
        await asyncio.sleep(0)  # a cancelled task ends in the next turns
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if "Client" in repr(task) or "Handler" in repr(task)]


def begin(handler, client):
    return asyncio.create_task(ending_with_client(handler)(request="x", raw_request=client))


async def test_an_answer(client):
    handler = Handler()
    handler.go_on.set()
    assert await begin(handler, client) == "answer to x"
    assert not handler.cancelled


async def test_an_error(client):
    async def fail(request, raw_request):
        raise ValueError(request)

    with pytest.raises(ValueError, match="x"):
        await begin(fail, client)


@pytest.mark.parametrize("result", [None, "closed"])
async def test_a_client_that_disconnects(client, result):
    handler = Handler(result_if_cancelled=result)

    async def request():
        found = await ending_with_client(handler)(request="x", raw_request=client)
        return found, asyncio.current_task().cancelling()

    task = asyncio.create_task(request())
    await handler.began.wait()
    client.gone.set()
    async with asyncio.timeout(PATIENCE):
        assert await task == (result, 0)
    assert handler.cancelled


@pytest.mark.parametrize("at_once", [False, True], ids=["server", "server and client"])
async def test_a_server_that_cancels(client, at_once):
    handler = Handler()
    task = begin(handler, client)
    await handler.began.wait()
    if at_once:
        client.gone.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handler.cancelled


async def test_vllms_wrapper_leaves_the_handler_running(client):
    """The reason for the replacement: once this fails, vLLM's own can be used again."""
    handler = Handler()
    task = asyncio.create_task(with_cancellation(handler.__call__)("x", client))
    await handler.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not handler.cancelled
    handler.go_on.set()
    client.gone.set()


async def test_the_routes_that_are_changed():
    app = FastAPI()

    @app.get("/plain")
    async def plain():
        pass

    @app.post("/wrapped")
    @with_cancellation
    async def wrapped(request: dict, raw_request: dict):
        pass

    calls = {r.path: r.dependant.call for r in app.routes if isinstance(r, APIRoute)}
    cancel_with_clients(app)
    changed = {r.path: r.dependant.call for r in app.routes if isinstance(r, APIRoute)}
    assert {path for path in calls if calls[path] is not changed[path]} == {"/wrapped"}
    assert changed["/wrapped"].__wrapped__ is calls["/wrapped"].__wrapped__
    with pytest.raises(RuntimeError, match="not supported"):
        cancel_with_clients(app)

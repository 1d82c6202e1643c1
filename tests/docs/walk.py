"""Records the modules that one streamed request passes, with a profiler.

A module counts if one of its functions is called, other than constructors, properties, operators
and comprehensions.

The router runs in this thread and its rank in another one, so that the profiler of this thread sees
only the router. A first request warms up caches and imports; the second is recorded.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import grpc
import httpx

from serving.api.v1 import inference_pb2 as api
from serving.api.v1 import inference_pb2_grpc as rpc
from serving.engine.fake.engine import FakeEngine
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.router.app import Router
from serving.settings import Settings
from tests.integration.edge.stand import stand_settings
from tests.support.waiting import PATIENCE, eventually

SERVING = Path(__file__).resolve().parents[2] / "serving"
GENERATED = ("api.", "link.v1.")
QUIET = 60.0
"""Interval of reports and pings, seconds; long enough that none occurs while recording."""
TOKENS = 6
Call = tuple[str, str]
"""Module below ``serving`` and function."""


class Recorder:
    """The calls of this project's functions in this thread, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._modules: dict[str, str | None] = {}
        self._properties = _properties()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the calls made within the block."""
        sys.setprofile(self._called)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        file = frame.f_code.co_filename
        if file not in self._modules:
            self._modules[file] = module_of(Path(file))
        module = self._modules[file]
        name = frame.f_code.co_name
        if module is None or not _is_step(name) or frame.f_code in self._properties:
            return
        self.calls.append((module, name))


def _properties() -> set[CodeType]:
    """Return the code objects of all properties, which do not count as steps."""
    classes = {
        value
        for name, module in list(sys.modules.items())
        if name.startswith("serving.")
        for value in vars(module).values()
        if isinstance(value, type)
    }
    return {
        value.fget.__code__
        for cls in classes
        for value in vars(cls).values()
        if isinstance(value, property) and isinstance(value.fget, FunctionType)
    }


def _is_step(function: str) -> bool:
    """Return whether a function is a step: constructors, operators and comprehensions are not."""
    return function == "__call__" or not function.startswith(("__", "<"))


def module_of(file: Path) -> str | None:
    """Return a file's module below ``serving``; ``None`` for generated and other files."""
    if not file.is_relative_to(SERVING):
        return None
    module = ".".join(file.relative_to(SERVING).with_suffix("").parts)
    return None if module.startswith(GENERATED) else module


def down(calls: list[Call], *, beside: tuple[str, ...] = ()) -> list[str]:
    """Return the modules up to the request's submission to a rank, in order of their first call.

    Args:
        calls: all calls of the request.
        beside: modules to omit because they work on something else at the same time.
    """
    end = calls.index(("fleet.rank_link", "submit"))
    modules = dict.fromkeys(module for module, _ in calls[: end + 1])
    return [module for module in modules if module not in beside]


def up(calls: list[Call]) -> list[str]:
    """Return the modules that a token passes from the link to the client."""
    received = [index for index, call in enumerate(calls) if call == ("fleet.rank_link", "receive")]
    arrived = [
        index for index, call in enumerate(calls) if call == ("h2grpc.connection", "data_received")
    ]
    begin = max(index for index in arrived if index < received[2])
    end = max(index for index in arrived if index < received[3])
    return list(dict.fromkeys(module for module, _ in calls[begin:end]))


async def watched(ask: Callable[[Router], Awaitable[None]]) -> list[Call]:
    """Return the calls of a request that ``ask`` sends to a router with one fake rank."""
    settings = stand_settings(link={"load_interval": QUIET, "keepalive": QUIET})
    router = await Router.start(settings)
    try:
        async with _rank(settings, router):
            await ask(router)
            recorder = Recorder()  # all modules are imported now
            await asyncio.sleep(0.2)  # the first connection closes
            with recorder.watching():
                await ask(router)
    finally:
        await router.stop()
    return recorder.calls


async def ask_rest(router: Router) -> None:
    """Stream a chat over REST."""
    body = {
        "model": "pocket-r1",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": TOKENS,
        "stream": True,
    }
    url = f"{router.addresses.rest}/v1/chat/completions"
    async with (
        httpx.AsyncClient(timeout=PATIENCE) as client,
        client.stream("POST", url, json=body) as answer,
    ):
        events = [line async for line in answer.aiter_lines() if line.startswith("data: ")]
    assert json.loads(events[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


async def ask_grpc(router: Router) -> None:
    """Stream a chat over gRPC."""
    request = api.ChatRequest(
        model="pocket-r1",
        messages=[api.Message(role=api.ROLE_USER, content="hi")],
        sampling=api.SamplingParams(max_tokens=TOKENS),
    )
    async with grpc.aio.insecure_channel(router.addresses.grpc) as channel:
        parts = [part async for part in rpc.InferenceServiceStub(channel).ChatStream(request)]
    assert parts


class _rank:  # noqa: N801  used as a function
    """A fake rank with a separate thread and event loop."""

    def __init__(self, settings: Settings, router: Router) -> None:
        self._settings = settings
        self._router = router
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    async def __aenter__(self) -> None:
        self._thread.start()
        await eventually(lambda: self._router.membership.ready)

    async def __aexit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def _run(self) -> None:
        address = self._router.addresses.join
        link = self._settings.link.model_copy(update={"routers": (address,)})
        engine = FakeEngine(self._settings, rank=0, token_delay=0.02)
        await engine.start()
        server = RankServer(engine, link, RankIdentity("g0", "e1", 0, 1, "127.0.0.1"))
        await server.start()
        await self._stop.wait()
        await server.stop()
        await engine.shutdown()

"""Reads token streams, and says how long the worst gap between two tokens was.

    python -m loadtest.bench.flood_watch GRPC_ADDRESS|- REST_URL|- SERVER_PID

Prints READY when every stream has begun. Each line of the input is answered by a line of JSON:
the worst gap in milliseconds since the last line, of each stream, and of the answer to /health;
"NAME cpu" is the most that the server's main thread computed between two tokens, which does not
depend on what else the machine does.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import grpc
import grpc.aio

from serving.api.v1 import inference_pb2 as api

METHOD = "/serving.api.v1.InferenceService/CompleteStream"
PATH = "/v1/completions"
_MODEL = "pocket-r1"
_TOKENS = 12_000
_HEALTH_EVERY = 0.02
_TIMEOUT = 120.0


class Gaps:
    """The worst gap of each stream since it was asked last."""

    def __init__(self, pid: int) -> None:
        self._schedule = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._seen: dict[str, tuple[float, float]] = {}
        self._worst: dict[str, float] = {}
        self._more = asyncio.Event()

    def now(self) -> tuple[float, float]:
        """Return the time, and the CPU time of the server's main thread, in seconds."""
        computed = 0.0
        with contextlib.suppress(OSError):
            computed = int(self._schedule.read_text("ascii").split()[0]) / 1e9
        return time.perf_counter(), computed

    async def begun(self, streams: int) -> None:
        """Return when something has come on so many streams."""
        while len(self._seen) < streams:
            self._more.clear()
            await self._more.wait()

    def seen(self, name: str) -> None:
        """Note that something came."""
        now = self.now()
        self.took(name, self._seen.get(name, now), now)
        self._seen[name] = now
        self._more.set()

    def took(self, name: str, begin: tuple[float, float], end: tuple[float, float]) -> None:
        """Note how long something took."""
        for key, before, after in zip((name, f"{name} cpu"), begin, end, strict=True):
            self._worst[key] = max(self._worst.get(key, 0.0), after - before)

    def pause(self, name: str) -> None:
        """Forget when something came last: what follows is another stream."""
        self._seen.pop(name, None)

    def worst(self) -> dict[str, float]:
        """Return the worst gaps, a gap that lasts still among them, and begin again."""
        now = self.now()
        for name, seen in self._seen.items():
            self.took(name, seen, now)
        found, self._worst = self._worst, {}
        return {name: round(seconds * 1e3, 1) for name, seconds in found.items()}


async def grpc_tokens(address: str) -> AsyncIterator[bytes]:
    """Yield the messages of one long stream."""
    request = api.CompleteRequest(
        model=_MODEL, text="flood", sampling=api.SamplingParams(max_tokens=_TOKENS)
    )
    async with grpc.aio.insecure_channel(address) as channel:
        stream = channel.unary_stream(METHOD, None, None)
        async for message in stream(request.SerializeToString()):
            yield message


async def rest_tokens(url: str) -> AsyncIterator[bytes]:
    """Yield the events of one long stream."""
    body = {"model": _MODEL, "prompt": "flood", "max_tokens": _TOKENS, "stream": True}
    timeout = aiohttp.ClientTimeout(_TIMEOUT)
    async with (
        aiohttp.ClientSession(url, timeout=timeout) as session,
        session.post(PATH, json=body) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.content:
            if line.startswith(b"data: "):
                yield line


async def _follow(gaps: Gaps, name: str, tokens: Callable[[], AsyncIterator[bytes]]) -> None:
    while True:
        try:
            async for _ in tokens():
                gaps.seen(name)
            gaps.pause(name)
        except (grpc.RpcError, aiohttp.ClientError, TimeoutError) as error:
            # The gap lasts until the next stream gives a token.
            print(f"{name}: {error}", file=sys.stderr)
            await asyncio.sleep(_HEALTH_EVERY)


async def _health(gaps: Gaps, url: str) -> None:
    """Ask for /health again and again, on one connection."""
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(_TIMEOUT)) as session:
        while True:
            began = gaps.now()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get("/health") as answer:
                    await answer.read()
            gaps.took("health", began, gaps.now())
            await asyncio.sleep(_HEALTH_EVERY)


async def watch(address: str, url: str, pid: str) -> None:
    """Follow the streams until the input ends."""
    gaps = Gaps(int(pid))
    async with asyncio.TaskGroup() as group:
        tasks = []
        if address != "-":
            tasks.append(group.create_task(_follow(gaps, "grpc", lambda: grpc_tokens(address))))
        if url != "-":
            tasks.append(group.create_task(_follow(gaps, "rest", lambda: rest_tokens(url))))
            tasks.append(group.create_task(_health(gaps, url)))
        async with asyncio.timeout(_TIMEOUT):
            await gaps.begun((address != "-") + (url != "-"))
        print("READY", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(gaps.worst()), flush=True)
        for task in tasks:
            task.cancel()


def main() -> None:
    """Read the arguments and watch."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watch(*sys.argv[1:]))


if __name__ == "__main__":
    main()

"""Reads token streams and reports the longest gap between two tokens.

    python -m loadtest.bench.flood_watch GRPC_ADDRESS|- REST_URL|- SERVER_PID [CA]

Prints READY when every stream has begun, then one line of JSON for each line of standard input. It
contains the worst gap since the previous line, milliseconds, by stream and for the answer to
/health. "NAME cpu" is the maximum CPU time that the server's main thread used between two tokens;
"NAME own" is the worst gap excluding the time in which that thread was waiting for a core.
"""

import asyncio
import contextlib
import json
import ssl
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

_Times = tuple[float, float, float]
"""Wall-clock time, the server's CPU time, and its time waiting for a core; seconds."""


class Gaps:
    """The worst gap of each stream since the last call to ``worst``."""

    def __init__(self, pid: int) -> None:
        self._schedule = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._seen: dict[str, _Times] = {}
        self._worst: dict[str, float] = {}
        self._more = asyncio.Event()

    def now(self) -> _Times:
        """Return the time, and the CPU time and core wait of the server's main thread."""
        computed = waited = 0.0
        with contextlib.suppress(OSError):
            computed, waited = (
                int(each) / 1e9 for each in self._schedule.read_text("ascii").split()[:2]
            )
        return time.perf_counter(), computed, waited

    async def begun(self, streams: int) -> None:
        """Wait until ``streams`` streams have received data."""
        while len(self._seen) < streams:
            self._more.clear()
            await self._more.wait()

    def seen(self, name: str) -> None:
        """Record that a stream received data."""
        now = self.now()
        self.took(name, self._seen.get(name, now), now)
        self._seen[name] = now
        self._more.set()

    def took(self, name: str, begin: _Times, end: _Times) -> None:
        """Record the gap from ``begin`` to ``end``."""
        gap, computed, waited = (after - before for before, after in zip(begin, end, strict=True))
        for key, seconds in (name, gap), (f"{name} cpu", computed), (f"{name} own", gap - waited):
            self._worst[key] = max(self._worst.get(key, 0.0), seconds)

    def pause(self, name: str) -> None:
        """Stop measuring a stream until it receives data again."""
        self._seen.pop(name, None)

    def worst(self) -> dict[str, float]:
        """Return and reset the worst gaps, including gaps still open."""
        now = self.now()
        for name, seen in self._seen.items():
            self.took(name, seen, now)
        found, self._worst = self._worst, {}
        return {name: round(seconds * 1e3, 1) for name, seconds in found.items()}


async def grpc_tokens(address: str, ca: Path | None = None) -> AsyncIterator[bytes]:
    """Yield the messages of a long stream."""
    request = api.CompleteRequest(
        model=_MODEL, text="flood", sampling=api.SamplingParams(max_tokens=_TOKENS)
    )
    root = None if ca is None else await asyncio.to_thread(ca.read_bytes)
    async with (
        grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(root))
        if root
        else grpc.aio.insecure_channel(address)
    ) as channel:
        stream = channel.unary_stream(METHOD, None, None)
        async for message in stream(request.SerializeToString()):
            yield message


def _session(url: str, ca: Path | None) -> aiohttp.ClientSession:
    tls = ca is None or ssl.create_default_context(cafile=str(ca))
    return aiohttp.ClientSession(
        url,
        timeout=aiohttp.ClientTimeout(_TIMEOUT),
        connector=aiohttp.TCPConnector(ssl=tls),
    )


async def rest_tokens(url: str, ca: Path | None = None) -> AsyncIterator[bytes]:
    """Yield the events of a long stream."""
    body = {"model": _MODEL, "prompt": "flood", "max_tokens": _TOKENS, "stream": True}
    async with (
        _session(url, ca) as session,
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
            # The gap lasts until the next stream yields a token.
            print(f"{name}: {error}", file=sys.stderr)
            await asyncio.sleep(_HEALTH_EVERY)


async def _health(gaps: Gaps, url: str, ca: Path | None) -> None:
    """Request /health repeatedly on one connection."""
    async with _session(url, ca) as session:
        while True:
            began = gaps.now()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get("/health") as answer:
                    await answer.read()
            gaps.took("health", began, gaps.now())
            await asyncio.sleep(_HEALTH_EVERY)


async def watch(address: str, url: str, pid: str, ca_file: str = "") -> None:
    """Follow the streams until standard input ends."""
    gaps = Gaps(int(pid))
    ca = Path(ca_file) if ca_file else None
    async with asyncio.TaskGroup() as group:
        tasks = []
        if address != "-":
            tasks.append(group.create_task(_follow(gaps, "grpc", lambda: grpc_tokens(address, ca))))
        if url != "-":
            tasks.append(group.create_task(_follow(gaps, "rest", lambda: rest_tokens(url, ca))))
            tasks.append(group.create_task(_health(gaps, url, ca)))
        async with asyncio.timeout(_TIMEOUT):
            await gaps.begun((address != "-") + (url != "-"))
        print("READY", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(gaps.worst()), flush=True)
        for task in tasks:
            task.cancel()


def main() -> None:
    """Run the command line."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watch(*sys.argv[1:]))


if __name__ == "__main__":
    main()

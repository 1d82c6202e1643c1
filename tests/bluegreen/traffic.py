"""Continuous requests to several routers, and the result of each.

Each client streams one greedy request after another, alternating between REST and gRPC and between
the routers. The texts are compared with those of an undisturbed run.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc.aio
import httpx

from serving.api.v1 import inference_pb2_grpc
from tests.faults.real.streams import PATIENCE, Stream, ask_over_grpc, ask_over_rest


class Router(Protocol):
    """Addresses and model of a router."""

    rest: str
    grpc: str
    model: str


@dataclass(slots=True)
class Line:
    """REST and gRPC clients of one router."""

    model: str
    rest: httpx.AsyncClient
    stub: Any


@dataclass(slots=True)
class Traffic:
    """The requests of one run."""

    lines: Sequence[Line]
    prompts: int
    """Number of different prompts, sent in turn."""
    tokens: int
    """Tokens of each answer."""
    undisturbed: dict[int, dict[int, str]] = field(default_factory=dict)
    """Expected texts, by prompt and choice."""
    done: int = 0
    lost: list[str] = field(default_factory=list)
    """Descriptions of requests that failed, ended early or have a different text."""
    longest_wait: float = 0.0
    """Longest time from a request to its first token, seconds."""
    running: set[int] = field(default_factory=set)
    _streams: dict[int, Stream] = field(default_factory=dict)
    """Running streams, and those that ended since the last call to ``longest_gap``."""

    async def learn(self) -> None:
        """Send every prompt once and keep its text, before anything is disturbed."""
        streams = [Stream(number, "REST") for number in range(self.prompts)]
        await asyncio.gather(*(self._ask(stream, self.lines[0]) for stream in streams))
        for stream in streams:
            if not stream.complete:
                raise RuntimeError(f"the undisturbed run failed: {stream.error}")
            self.undisturbed[stream.number] = dict(stream.texts)

    async def flow(self, clients: int, stop: asyncio.Event) -> None:
        """Keep ``clients`` streams running until ``stop`` is set; the last ones finish."""
        numbers = itertools.count()
        await asyncio.gather(*(self._client(numbers, stop) for _ in range(clients)))

    def longest_gap(self, since: float) -> float:
        """Return the longest gap between two tokens after ``since``, seconds.

        Streams that ended before the last call are not considered.
        """
        gaps = [stream.longest_gap(since) for stream in self._streams.values()]
        self._streams = {key: self._streams[key] for key in self.running}
        return max(gaps, default=0.0)

    async def _client(self, numbers: "itertools.count[int]", stop: asyncio.Event) -> None:
        while not stop.is_set():
            number = next(numbers)
            over = "REST" if number // len(self.lines) % 2 else "gRPC"
            stream = Stream(number % self.prompts, over)
            self._streams[number] = stream
            self.running.add(number)
            sent_at = time.monotonic()
            await self._ask(stream, self.lines[number % len(self.lines)])
            if stream.chunks:
                self.longest_wait = max(self.longest_wait, stream.chunks[0] - sent_at)
            self.running.discard(number)
            self._judge(number, stream)

    async def _ask(self, stream: Stream, line: Line) -> None:
        if stream.over == "REST":
            await ask_over_rest(line.rest, line.model, stream, self.tokens)
        else:
            await ask_over_grpc(line.stub, line.model, stream, self.tokens)

    def _judge(self, number: int, stream: Stream) -> None:
        if not stream.complete:
            self.lost.append(f"{stream.over} {number}: {stream.error or 'ended early'}")
        elif stream.texts != self.undisturbed[stream.number]:
            self.lost.append(f"{stream.over} {number}: another text than undisturbed")
        else:
            self.done += 1


@contextlib.asynccontextmanager
async def connected(routers: Sequence[Router]) -> AsyncIterator[list[Line]]:
    """Yield REST and gRPC clients for every router."""
    async with contextlib.AsyncExitStack() as stack:
        lines = []
        for router in routers:
            limits = httpx.Limits(max_connections=None)
            rest = httpx.AsyncClient(
                base_url=router.rest, timeout=PATIENCE, limits=limits, trust_env=False
            )
            channel = grpc.aio.insecure_channel(router.grpc)
            lines.append(
                Line(
                    router.model,
                    await stack.enter_async_context(rest),
                    inference_pb2_grpc.InferenceServiceStub(
                        await stack.enter_async_context(channel)
                    ),
                )
            )
        yield lines

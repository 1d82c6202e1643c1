"""Load clients of the router benchmark, in a separate process; they also measure its CPU time.

    python -m loadtest.bench.clients CASE_JSON REST_URL GRPC_ADDRESS ROUTER_PID

The clients parse less of each answer than ``serving.client``, to leave CPU time for the router.
Prints one line of JSON (``Measured``).
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import aiohttp
import grpc
import grpc.aio
import psutil

from loadtest.statistics import Quantiles
from serving.api.v1 import inference_pb2 as api
from serving.api.v1 import inference_pb2_grpc

_TIMEOUT = 300.0
_STREAMS_A_CONNECTION = 100
_OPENING = 300
"""Streams opened per second."""
_MODEL = "pocket-r1"

Protocol = Literal["rest", "grpc"]


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement: a closed loop of ``streams`` streams."""

    protocol: Protocol
    streams: int
    prompt_tokens: int
    output_tokens: int
    stream: bool
    seconds: float
    """Duration of the measurement, which begins when every stream has begun and ``warmup`` has
    passed; seconds."""
    warmup: float = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Result of a case."""

    requests_per_second: float
    tokens_per_second: float
    cpu_ms_per_request: float | None
    """User and system CPU time of the router per finished request; None if none finished."""
    cpu_us_per_token: float
    cpu_share: float
    """CPU time of the router as a share of one core."""
    p50_ms: float | None
    """Time until the complete answer; None if no request finished."""
    p99_ms: float | None
    rss_mib: float
    prompt_tokens: float
    """Prompt tokens per request, as counted by the router."""
    messages_per_token: float
    """Messages per streamed token: below 1 if the router merged tokens for slow clients."""


@dataclass(slots=True)
class _Tally:
    requests: int = 0
    tokens: int = 0
    messages: int = 0
    prompt_tokens: int = 0
    seconds: list[float] = field(default_factory=list)


Send = Callable[[int], AsyncIterator[tuple[int, int]]]
"""Sends request number n; yields (characters, prompt tokens) for each message of the answer. A
token of the fake engine is one character."""


async def measure(case: Case, send: Send, router: psutil.Process) -> Measured:
    """Run the closed loop and measure the router's CPU time."""
    tally = _Tally()
    numbers = itertools.count()
    begun: set[int] = set()
    all_begun = asyncio.Event()

    async def stream(index: int) -> None:
        await asyncio.sleep(index / _OPENING)
        while True:
            began = time.perf_counter()
            async for characters, prompt in send(next(numbers)):
                if index not in begun:
                    begun.add(index)
                    if len(begun) == case.streams:
                        all_begun.set()
                tally.tokens += characters
                tally.messages += characters > 0
                tally.prompt_tokens += prompt
            tally.requests += 1
            tally.seconds.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream(index)) for index in range(case.streams)]
        async with asyncio.timeout(_TIMEOUT):
            await all_begun.wait()
        await asyncio.sleep(case.warmup)
        tally.requests = tally.tokens = tally.messages = tally.prompt_tokens = 0
        tally.seconds.clear()
        cpu, began = _cpu(router), time.perf_counter()
        await asyncio.sleep(case.seconds)
        spent, elapsed = _cpu(router) - cpu, time.perf_counter() - began
        found = _Tally(
            tally.requests, tally.tokens, tally.messages, tally.prompt_tokens, list(tally.seconds)
        )
        rss = router.memory_info().rss
        for task in tasks:
            task.cancel()
    latency = Quantiles.of(found.seconds) if found.seconds else None
    return Measured(
        found.requests / elapsed,
        found.tokens / elapsed,
        spent / found.requests * 1e3 if found.requests else None,
        spent / max(found.tokens, 1) * 1e6,
        spent / elapsed,
        None if latency is None else latency.p50 * 1e3,
        None if latency is None else latency.p99 * 1e3,
        rss / 2**20,
        found.prompt_tokens / max(found.requests, 1),
        found.messages / max(found.tokens, 1),
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _prompt(number: int, tokens: int) -> str:
    """Return a prompt of about ``tokens`` tokens, most of them one character (bundled model)."""
    return f"{number} ".ljust(max(tokens - 1, 2), "x")


def rest_send(case: Case, session: aiohttp.ClientSession) -> Send:
    """Return a function that sends over REST."""

    async def send(number: int) -> AsyncIterator[tuple[int, int]]:
        body = {
            "model": _MODEL,
            "prompt": _prompt(number, case.prompt_tokens),
            "max_tokens": case.output_tokens,
            "stream": case.stream,
        }
        async with session.post("/v1/completions", json=body) as answer:
            if answer.status != 200:  # noqa: PLR2004
                raise RuntimeError(f"{answer.status}: {await answer.text()}")
            if not case.stream:
                content: dict[str, Any] = await answer.json()
                usage = content["usage"]
                yield usage["completion_tokens"], usage["prompt_tokens"]
                return
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        yield len(choice["text"]), 0

    return send


def grpc_send(case: Case, channels: list[grpc.aio.Channel]) -> Send:
    """Return a function that sends over gRPC."""
    stubs: list[Any] = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]

    async def send(number: int) -> AsyncIterator[tuple[int, int]]:
        request = api.CompleteRequest(
            model=_MODEL,
            text=_prompt(number, case.prompt_tokens),
            sampling=api.SamplingParams(max_tokens=case.output_tokens),
        )
        stub = stubs[number % len(stubs)]
        if not case.stream:
            answer = await stub.Complete(request, timeout=_TIMEOUT)
            yield answer.usage.completion_tokens, answer.usage.prompt_tokens
            return
        async for part in stub.CompleteStream(request, timeout=_TIMEOUT):
            for choice in part.choices:
                yield len(choice.text), 0

    return send


async def run(case: Case, rest: str, address: str, pid: int) -> Measured:
    """Measure a case on a router."""
    router = psutil.Process(pid)
    if case.protocol == "rest":
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            rest, connector=connector, timeout=aiohttp.ClientTimeout(_TIMEOUT)
        ) as session:
            return await measure(case, rest_send(case, session), router)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(address, options=options)
        for _ in range(-(-case.streams // _STREAMS_A_CONNECTION))
    ]
    try:
        return await measure(case, grpc_send(case, channels), router)
    finally:
        for channel in channels:
            await channel.close(None)


def main() -> None:
    """Run the command line."""
    import uvloop

    case = Case(**json.loads(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measured = runner.run(run(case, sys.argv[2], sys.argv[3], int(sys.argv[4])))
    print(json.dumps(asdict(measured)), flush=True)


if __name__ == "__main__":
    main()

"""Runs a closed loop against one server and measures the CPU time of all its processes.

    python -m loadtest.bench.peer_client TRIAL_JSON

Prints one line of JSON (``TrialResult``).
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from loadtest.bench.clients import Protocol
from loadtest.bench.roles import CLIENT, cpu_by_role
from loadtest.statistics import Quantiles
from serving.client.aio import AsyncClient, AsyncGrpcClient, AsyncRestClient
from serving.client.chat import GenerateOptions, GenerateRequest, Message
from serving.client.errors import ClientError

_FAILURES = 20
"""Number of failures after which a trial ends."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement."""

    protocol: Protocol
    address: str
    streams: int
    seconds: float
    warmup: float
    output_tokens: int
    mark: str
    """Mark in the environment of all processes of the deployment (``roles``)."""
    fronts: tuple[int, ...]
    """Ids of the processes in front of the engines."""
    model: str = "pocket-r1"


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Result of a trial, from the requests that ended in the measured time."""

    tokens_per_second: float
    requests_per_second: float
    failures: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    cpu_seconds: dict[str, float]
    """By role: router, rank, other (a control plane), client (this process, on the same cores)."""
    cpu_per_1000_tokens: dict[str, float]
    cpu_ms_per_request: dict[str, float]


@dataclass(slots=True)
class _Tally:
    characters: int = 0
    requests: int = 0
    failures: int = 0
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    tokens_per_character: list[float] = field(default_factory=list)


async def measure(trial: Trial, client: AsyncClient) -> TrialResult:
    """Run the closed loop.

    Raises:
        ClientError: Too many requests failed.
    """
    tally = _Tally()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_stream(index, trial, client, tally))
            for index in range(trial.streams)
        ]
        await asyncio.sleep(trial.warmup)
        tally.characters = tally.requests = 0
        tally.ttft.clear()
        tally.itl.clear()
        before, began = _cpu(trial), time.perf_counter()
        await asyncio.sleep(trial.seconds)
        after, elapsed = _cpu(trial), time.perf_counter() - began
        for task in tasks:
            task.cancel()
    return _shown(tally, before, after, elapsed, trial)


def _cpu(trial: Trial) -> dict[str, float]:
    own = psutil.Process().cpu_times()
    return cpu_by_role(trial.mark, trial.fronts) | {CLIENT: own.user + own.system}


async def _stream(index: int, trial: Trial, client: AsyncClient, tally: _Tally) -> None:
    """Send one request after another; every server gets the same requests in the same order."""
    options = GenerateOptions(
        trial.model, "completions", temperature=0.0, ignore_eos=True, timeout=120.0
    )
    for turn in itertools.count():
        text = f"{index}.{turn}: what is {17 + index} + {25 + turn}?"
        try:
            request = GenerateRequest((Message("user", text),), trial.output_tokens, str(index))
            await _send(client, request, options, tally)
        except ClientError:
            tally.failures += 1
            if tally.failures >= _FAILURES:
                raise


async def _send(
    client: AsyncClient, request: GenerateRequest, options: GenerateOptions, tally: _Tally
) -> None:
    sent = time.perf_counter()
    first = last = 0.0
    characters = tokens = 0
    async for delta in client.generate(request, options):
        if text := delta.text:
            last = time.perf_counter()
            first = first or last
            characters += len(text)
            tally.characters += len(text)
        if delta.usage is not None:
            tokens = delta.usage.output_tokens
    if not characters or not tokens:
        raise ClientError("broken", "the answer contains no text or no usage")
    tally.requests += 1
    tally.ttft.append(first - sent)
    if tokens > 1:
        tally.itl.append((last - first) / (tokens - 1))
    tally.tokens_per_character.append(tokens / characters)


def _shown(
    tally: _Tally,
    before: Mapping[str, float],
    after: Mapping[str, float],
    elapsed: float,
    trial: Trial,
) -> TrialResult:
    ratios = tally.tokens_per_character
    if not ratios:
        raise ClientError("timeout", "no request finished")
    tokens = tally.characters * sum(ratios) / len(ratios)
    spent = {role: after[role] - before[role] for role in after}
    ttft, itl = Quantiles.of(tally.ttft), Quantiles.of(tally.itl)
    return TrialResult(
        tokens / elapsed,
        tokens / trial.output_tokens / elapsed,
        tally.failures,
        ttft.p50 * 1e3,
        ttft.p99 * 1e3,
        itl.p50 * 1e3,
        itl.p99 * 1e3,
        spent,
        {role: seconds / max(tokens, 1) * 1e3 for role, seconds in spent.items()},
        {
            role: seconds / max(tokens / trial.output_tokens, 1) * 1e3
            for role, seconds in spent.items()
        },
    )


async def run(trial: Trial) -> TrialResult:
    """Run a trial."""
    client: AsyncClient = (
        AsyncRestClient(trial.address)
        if trial.protocol == "rest"
        else AsyncGrpcClient(trial.address)
    )
    try:
        return await measure(trial, client)
    finally:
        await client.close()


def main() -> None:
    """Run the command line."""
    import uvloop

    given: dict[str, Any] = json.loads(sys.argv[1])
    trial = Trial(**given | {"fronts": tuple(given["fronts"])})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            shown = runner.run(run(trial))
        except* ClientError as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            sys.exit(f"request failed: {error}")  # only the first, on one line
    print(json.dumps(asdict(shown)), flush=True)


if __name__ == "__main__":
    main()

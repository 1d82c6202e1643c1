"""A closed loop against one server, and the CPU time of all processes behind it.

    python -m loadtest.bench.peer_client TRIAL_JSON

Prints one line of JSON (``Shown``).
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
from loadtest.grpc_target import GrpcTarget
from loadtest.rest_target import RestTarget
from loadtest.statistics import Quantiles
from loadtest.target import Ask, Message, Style, Target, TargetError

_FAILURES = 20
"""After so many a server is not worth asking on."""


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
    """What the environment of all the deployment's processes holds (``roles``)."""
    fronts: tuple[int, ...]
    """Processes in front of the engines."""
    model: str = "pocket-r1"


@dataclass(frozen=True, slots=True)
class Shown:
    """What one trial showed. Times of requests that ended in the measured seconds."""

    tokens_per_second: float
    requests_per_second: float
    failures: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    cpu_seconds: dict[str, float]
    """By role: router, rank, other (a control plane), client (this; it takes the same cores)."""
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


async def measure(trial: Trial, target: Target) -> Shown:
    """Run the closed loop.

    Raises:
        TargetError: the server does not do what it should.
    """
    tally = _Tally()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_stream(index, trial, target, tally))
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


async def _stream(index: int, trial: Trial, target: Target, tally: _Tally) -> None:
    """Ask one thing after the other; every target is asked the same, in the same order."""
    style = Style(trial.model, "completions", ignore_eos=True)
    for turn in itertools.count():
        text = f"{index}.{turn}: what is {17 + index} + {25 + turn}?"
        try:
            await _ask(
                target, Ask((Message("user", text),), trial.output_tokens, str(index)), style, tally
            )
        except TargetError:
            tally.failures += 1
            if tally.failures >= _FAILURES:
                raise


async def _ask(target: Target, ask: Ask, style: Style, tally: _Tally) -> None:
    sent = time.perf_counter()
    first = last = 0.0
    characters = tokens = 0
    async for piece in target.send(ask, style):
        if piece.text:
            last = time.perf_counter()
            first = first or last
            characters += len(piece.text)
            tally.characters += len(piece.text)
        if piece.usage is not None:
            tokens = piece.usage.output_tokens
    if not characters or not tokens:
        raise TargetError("broken", "an answer without text or usage")
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
) -> Shown:
    ratios = tally.tokens_per_character
    if not ratios:
        raise TargetError("timeout", "no request ended")
    tokens = tally.characters * sum(ratios) / len(ratios)
    spent = {role: after[role] - before[role] for role in after}
    ttft, itl = Quantiles.of(tally.ttft), Quantiles.of(tally.itl)
    return Shown(
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


async def run(trial: Trial) -> Shown:
    """Measure one trial."""
    target: Target = (
        RestTarget(trial.address) if trial.protocol == "rest" else GrpcTarget(trial.address)
    )
    try:
        return await measure(trial, target)
    finally:
        await target.close()


def main() -> None:
    """Read the trial, measure, print."""
    import uvloop

    given: dict[str, Any] = json.loads(sys.argv[1])
    trial = Trial(**given | {"fronts": tuple(given["fronts"])})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            shown = runner.run(run(trial))
        except* TargetError as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            sys.exit(f"request failed: {error}")  # the first, in one line
    print(json.dumps(asdict(shown)), flush=True)


if __name__ == "__main__":
    main()

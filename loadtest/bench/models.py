"""``python -m loadtest.bench.models``: what serving several models costs a router.

Three routers with fake ranks run at the same time: one model on one group; one model on several
groups; several models on one group each. They are measured alternately, with requests for one model
and with requests spread over all models. The latter are compared with one model on the same number
of groups, because each frame of a rank contains the tokens of all its requests. Prints CPU time per
request and memory.
"""

import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from loadtest.bench.processes import RouterProcess, router
from serving.flags.parser import FlagParser
from serving.settings import BUNDLED_MODEL

_TOKENS = 32
"""Output tokens of a request."""
_CLIENTS = 8
"""Number of concurrent requests."""


@dataclass
class _Series:
    """One way to send requests."""

    name: str
    process: RouterProcess
    models: tuple[str, ...]
    """Models that requests alternate between."""
    base: "_Series | None" = None
    """The series to compare with. None if this one is the baseline."""
    milliseconds: list[float] = field(default_factory=list)
    """CPU time of the router per request, by round, milliseconds."""


def _names(models: int) -> tuple[str, ...]:
    return tuple(f"m{number}" for number in range(models))


def _settings(models: int) -> dict[str, Any]:
    return {
        "models": [{"name": name, "path": str(BUNDLED_MODEL)} for name in _names(models)],
        "router": {"loaded_models": models},
    }


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def _send(
    session: aiohttp.ClientSession, series: _Series, requests: int, *, stream: bool
) -> None:
    models, numbers = cycle(series.models), count()

    async def client() -> None:
        while next(numbers) < requests:
            body = {
                "model": next(models),
                "prompt": "x",
                "max_tokens": _TOKENS,
                "ignore_eos": True,
                "stream": stream,
            }
            url = f"{series.process.rest}/v1/completions"
            async with session.post(url, json=body) as response:
                response.raise_for_status()
                await response.read()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(_CLIENTS):
            tasks.create_task(client())


@contextlib.asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def _measure(every: Sequence[_Series], rounds: int, requests: int, *, stream: bool) -> None:
    """Add the CPU time of each round to each series; the order is reversed in every other round."""
    async with _session() as session:
        for series in every:  # loads the models; not measured
            await _send(session, series, 2 * len(series.models), stream=stream)
        for number in range(rounds):
            for series in every if number % 2 == 0 else reversed(every):
                before = _cpu_seconds(series.process.pid)
                await _send(session, series, requests, stream=stream)
                used = _cpu_seconds(series.process.pid) - before
                series.milliseconds.append(1000 * used / requests)


def _row(series: _Series) -> str:
    base = series.base or series
    median = statistics.median(series.milliseconds)
    pairs = zip(series.milliseconds, base.milliseconds, strict=True)
    change = statistics.median(mine / other for mine, other in pairs) - 1
    each = " ".join(f"{value:.2f}" for value in series.milliseconds)
    return f"| {series.name} | {median:.2f} | {change:+.1%} | {each} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--models", type=int, default=8, help="models of the third router")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=400, help="requests per series and round")
    options = parser.parse_args(arguments)
    names = _names(options.models)
    with contextlib.ExitStack() as stack:
        routers = {}
        for name, models, groups in (
            ("1 model", 1, names[:1]),
            (f"1 model on {len(names)} groups", 1, names[:1] * len(names)),
            (f"{len(names)} models", len(names), names),
        ):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-serving-bench-"))
            process = stack.enter_context(router(Path(folder), settings=_settings(models)))
            stack.enter_context(process.groups(groups))
            routers[name] = process
        small, wide, large = routers.items()
        for stream in (False, True):
            one = _Series(*small, names[:1])
            spread = _Series(*wide, names[:1])
            every = (
                one,
                _Series(f"{large[0]}, requests for one", large[1], names[:1], one),
                spread,
                _Series(f"{large[0]} in rotation", large[1], names, spread),
            )
            asyncio.run(_measure(every, options.rounds, options.requests, stream=stream))
            print(f"{'streamed' if stream else 'whole'}, CPU ms for a request of {_TOKENS} tokens")
            print("| series | median | difference | rounds |")
            print("|---|---:|---:|---|")
            print("\n".join(map(_row, every)), flush=True)
        for name, process in routers.items():
            resident = psutil.Process(process.pid).memory_info().rss / 2**20
            print(f"resident memory, {name}: {resident:.0f} MiB")


if __name__ == "__main__":
    main()

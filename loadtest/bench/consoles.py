"""``python -m loadtest.bench.consoles``: what open consoles cost a router with hundreds of ranks.

Alternately measures the router's CPU time and memory without and with consoles: first with an idle
fleet, then with streams that change the figures in every snapshot. Prints a table.
"""

import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from loadtest.bench.processes import RouterProcess, router
from serving.flags.parser import FlagParser

_PIECE = 2**16
_LONG = 12_000
"""Output tokens per request of a stream, which then sends the next one."""


@dataclass
class _Shares:
    """CPU use of the router as a share of one core, and its resident memory in bytes."""

    without: list[float] = field(default_factory=list)
    open: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    received: int = 0
    """Bytes received by all consoles."""


async def _read(session: aiohttp.ClientSession, url: str, shares: _Shares) -> None:
    async with session.get(url) as response:
        response.raise_for_status()
        async for piece in response.content.iter_chunked(_PIECE):
            shares.received += len(piece)


async def _generate(session: aiohttp.ClientSession, url: str) -> None:
    body = {"model": "pocket-r1", "prompt": "x", "max_tokens": _LONG, "stream": True}
    while True:
        async with session.post(url, json=body | {"ignore_eos": True}) as response:
            response.raise_for_status()
            async for _ in response.content.iter_chunked(_PIECE):
                pass


@contextlib.asynccontextmanager
async def _tasks(*coroutines: object) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each) for each in coroutines]  # type: ignore[call-overload]
    await asyncio.sleep(2)  # connections and first snapshots are not measured
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
                raise RuntimeError("a stream ended early")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _measure(
    process: RouterProcess, consoles: int, streams: int, rounds: int, seconds: float
) -> _Shares:
    shares = _Shares()
    unlimited = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=unlimited, timeout=timeout) as session:
        work = [_generate(session, f"{process.rest}/v1/completions") for _ in range(streams)]
        async with _tasks(*work):
            for _ in range(rounds):
                shares.without.append(await asyncio.to_thread(process.idle_share, seconds))
                shares.resident.append(psutil.Process(process.pid).memory_info().rss)
                url = f"{process.rest}/console/api/stream?feed=fleet"
                async with _tasks(*(_read(session, url, shares) for _ in range(consoles))):
                    shares.open.append(await asyncio.to_thread(process.idle_share, seconds))
                    shares.resident.append(psutil.Process(process.pid).memory_info().rss)
    return shares


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--consoles", type=int, default=50)
    parser.add_argument("--streams", type=int, default=64, help="open streams in the second part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each measurement")
    options = parser.parse_args(arguments)
    head = (
        f"{options.ranks} ranks",
        "without",
        f"{options.consoles} consoles",
        "difference",
        "MB/s",
    )
    print(f"| {' | '.join(head)} |")
    print("|---|---:|---:|---:|---:|")
    with (
        tempfile.TemporaryDirectory(prefix="moe-serving-bench-") as folder,
        router(Path(folder)) as process,
        process.ranks(options.ranks, token_delay=0.064, stepped=True),
    ):
        for streams in (0, options.streams):
            shares = asyncio.run(
                _measure(process, options.consoles, streams, options.rounds, options.seconds)
            )
            pairs = zip(shares.open, shares.without, strict=True)
            difference = statistics.median(after - before for after, before in pairs)
            rate = shares.received / (options.rounds * (options.seconds + 2)) / 1e6
            print(
                f"| {streams or 'no'} streams | {statistics.median(shares.without):.2%} "
                f"| {statistics.median(shares.open):.2%} | {difference:.2%} | {rate:.2f} |"
            )
            resident = [round(each / 2**20) for each in shares.resident]
            print(f"resident MiB, without and with, alternately: {resident}")


if __name__ == "__main__":
    main()

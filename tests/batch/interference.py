"""What a batch does to interactive requests: `python -m tests.batch.interference`.

Starts a router with one group, measures the group's capacity, and then sends interactive requests
at random times (open loop) at 60 % of it, in short rounds that alternate between four modes:

- no batch,
- a batch, whose lines run in the measured headroom,
- a gateway that sends lines as ordinary requests, a fixed number at a time,
- a gateway without a limit, so that the group is always full.

Prints percentiles of the time to first token and of the inter-token latency of each round, their
medians over the rounds, and the fraction of the idle capacity that the lines used.
"""

import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from serving.flags.parser import FlagParser
from tests.batch.fleet import RANKS, SIMULATED_SEQUENCES, fleet
from tests.batch.requests import TOKENS, body
from tests.support.batches import CHATS
from tests.support.waiting import eventually

_LINES = 30_000
_WARM_UP = 4.0
"""Time that a round runs before it is measured, seconds."""
_LEARN = 15.0
"""Time that a batch runs alongside interactive requests before the first round, seconds."""
_MEAN_TOKENS = sum(TOKENS) / 2
ALONE, HEADROOM, CAP, UNPROTECTED = "no batch", "headroom", "fixed number", "no protection"


@dataclass
class Round:
    """Latencies of one round, seconds, and tokens."""

    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    tokens: int = 0
    batch_tokens: float = 0.0
    seconds: float = 0.0

    def row(self) -> list[float]:
        """Return p50 and p99 in milliseconds of both latencies, and both rates of tokens."""
        return [
            *(1000 * quantile(self.ttft, each) for each in (0.5, 0.99)),
            *(1000 * quantile(self.itl, each) for each in (0.5, 0.99)),
            self.tokens / self.seconds,
            self.batch_tokens / self.seconds,
        ]


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return a quantile; not a number without values."""
    ordered = sorted(values)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


class Client:
    """Interactive clients and the creator of batches."""

    def __init__(self, url: str, http: aiohttp.ClientSession, chance: random.Random) -> None:
        self._url = url
        self._http = http
        self._chance = chance

    async def ask(self, into: Round) -> None:
        """Send one streamed request and record its latencies."""
        request = body(self._chance)
        last = time.perf_counter()
        async with self._http.post(
            f"{self._url}{CHATS}",
            json={**request, "stream": True},
            headers={"x-priority": "interactive"},
        ) as response:
            response.raise_for_status()
            first = True
            async for line in response.content:
                # One event for each step; the first one of a stream has the role only.
                if not line.startswith(b"data: {") or b'"role"' in line:
                    continue
                now = time.perf_counter()
                (into.ttft if first else into.itl).append(now - last)
                first, last = False, now
        into.tokens += request["max_tokens"]

    async def traffic(self, rate: float, seconds: float) -> Round:
        """Send requests for some seconds; those of the warm-up are not recorded."""
        found, unrecorded = Round(seconds=seconds), Round()
        begun, tasks, due = time.perf_counter(), [], 0.0
        while due < seconds + _WARM_UP:
            await asyncio.sleep(max(begun + due - time.perf_counter(), 0.0))
            into = found if due >= _WARM_UP else unrecorded
            tasks.append(asyncio.create_task(self.ask(into)))
            due += self._chance.expovariate(rate)
        await asyncio.gather(*tasks)
        return found

    async def saturated(self, concurrency: int, seconds: float) -> float:
        """Return the tokens per second of a fixed number of streamed requests."""
        found = Round()

        async def again() -> None:
            while True:
                await self.ask(found)

        tasks = [asyncio.create_task(again()) for _ in range(concurrency)]
        await asyncio.sleep(_WARM_UP)
        before, begun = found.tokens, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (found.tokens - before) / (time.perf_counter() - begun)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rate

    @contextlib.asynccontextmanager
    async def batch(self) -> AsyncIterator[Callable[[], Coroutine[Any, Any, float]]]:
        """Run a batch with more lines than a round can run; yield what counts its tokens."""
        lines = "\n".join(
            json.dumps(
                {
                    "custom_id": str(number),
                    "method": "POST",
                    "url": CHATS,
                    "body": body(self._chance),
                }
            )
            for number in range(_LINES)
        )
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", lines.encode(), filename="lines.jsonl")
        file = (await self._call("POST", "/v1/files", data=form))["id"]
        new = {"input_file_id": file, "endpoint": CHATS, "completion_window": "24h"}
        batch = (await self._call("POST", "/v1/batches", json=new))["id"]
        await self._becomes(batch, "in_progress")
        try:
            yield self._line_tokens
        finally:
            await self._call("POST", f"/v1/batches/{batch}/cancel")
            await self._becomes(batch, "cancelled")

    async def _becomes(self, batch: str, status: str) -> None:
        async def reached() -> bool:
            found = await self._call("GET", f"/v1/batches/{batch}")
            return bool(found["status"] == status)

        await eventually(reached, f"a batch that is {status}", interval=0.2)

    async def _line_tokens(self) -> float:
        async with self._http.get(f"{self._url}/metrics") as response:
            for line in (await response.text()).splitlines():
                if line.startswith('moe_batch_tokens_total{kind="generated"}'):
                    return float(line.split()[-1])
        return 0.0

    async def _call(self, method: str, path: str, **arguments: Any) -> Any:
        async with self._http.request(method, f"{self._url}{path}", **arguments) as response:
            response.raise_for_status()
            return await response.json()

    @contextlib.asynccontextmanager
    async def gateway(
        self, concurrency: int
    ) -> AsyncIterator[Callable[[], Coroutine[Any, Any, float]]]:
        """Run a gateway; yield what counts its tokens."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.batch.gateway", self._url, str(concurrency)),
            str(self._chance.randrange(10**6)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None

        async def tokens() -> float:
            process.stdin.write(b"\n")
            return float(await process.stdout.readline())

        try:
            await tokens()  # it has started
            yield tokens
        finally:
            process.stdin.close()
            await process.wait()


async def one_round(client: Client, mode: str, rate: float, seconds: float, cap: int) -> Round:
    """Run one round."""

    async def nothing() -> float:
        return 0.0

    async with contextlib.AsyncExitStack() as stack:
        count = nothing
        if mode == HEADROOM:
            count = await stack.enter_async_context(client.batch())
        elif mode != ALONE:
            concurrency = cap if mode == CAP else 2 * RANKS * SIMULATED_SEQUENCES
            count = await stack.enter_async_context(client.gateway(concurrency))
        running = asyncio.create_task(client.traffic(rate, seconds))
        await asyncio.sleep(_WARM_UP)
        before, begun = await count(), time.perf_counter()
        await asyncio.sleep(seconds)
        tokens = (await count() - before) / (time.perf_counter() - begun) * seconds
        if mode in {CAP, UNPROTECTED}:
            await stack.aclose()  # an overloaded group would take long to answer the rest
        found = await running
        found.batch_tokens = tokens
        return found


async def measure(flags: Any, url: str) -> bool:
    """Run all rounds and print them; return whether the promises were kept."""
    rows: dict[str, list[list[float]]] = {
        mode: [] for mode in (ALONE, HEADROOM, CAP, UNPROTECTED) if mode in flags.modes.split(",")
    }
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(180)
    ) as http:
        client = Client(url, http, random.Random(flags.seed))
        capacity = await client.saturated(RANKS * SIMULATED_SEQUENCES, flags.seconds)
        rate = flags.load * capacity / _MEAN_TOKENS
        print(f"capacity {capacity:.0f} tokens/s; {rate:.2f} interactive requests/s")
        names = ("TTFT p50", "p99 ms", "ITL p50", "p99 ms", "tokens/s", "batch tokens/s")
        print(f"{'':16}" + "".join(f"{name:>16}" for name in names))
        await one_round(client, HEADROOM, rate, _LEARN, flags.cap)
        for number in range(flags.rounds):
            # Each mode follows each other one equally often.
            modes = list(rows)[number % len(rows) :] + list(rows)[: number % len(rows)]
            for mode in modes:
                found = await one_round(client, mode, rate, flags.seconds, flags.cap)
                rows[mode].append(found.row())
                show(mode, rows[mode][-1])
    print("medians of the rounds")
    medians = {
        mode: [statistics.median(column) for column in zip(*found, strict=True)]
        for mode, found in rows.items()
    }
    for mode, found in medians.items():
        show(mode, found)
    alone = medians[ALONE]
    spread = max(row[1] for row in rows[ALONE]) / min(row[1] for row in rows[ALONE])
    print(f"p99 TTFT of the rounds without a batch differs by a factor of {spread:.2f}")
    for mode, found in medians.items():
        print(
            f"{mode:16} p99 TTFT {found[1] / alone[1]:.2f}, p99 ITL {found[3] / alone[3]:.2f} of "
            f"no batch; used {found[5] / (capacity - alone[4]):.0%} of the idle capacity"
        )
    within = medians[HEADROOM]
    return max(within[1] / alone[1], within[3] / alone[3]) <= 1.1


def show(kind: str, row: list[float]) -> None:
    """Print one row."""
    print(f"{kind:16}" + "".join(f"{value:16.1f}" for value in row), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = FlagParser(prog="python -m tests.batch.interference", description=__doc__)
    parser.add_argument("--fleet", choices=("vllm", "simulated"), default="vllm", help="Ranks.")
    parser.add_argument("--load", type=float, default=0.6, help="Fraction of the capacity.")
    parser.add_argument("--cap", type=int, default=32, help="Lines of the gateway with a limit.")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds of each mode.")
    parser.add_argument("--seconds", type=float, default=15.0, help="Measured time of a round.")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the requests.")
    parser.add_argument(
        "--modes", default=f"{ALONE},{HEADROOM},{CAP},{UNPROTECTED}", help="Modes to run."
    )
    parser.add_argument("--set", action="append", default=[], help="Setting of batch, NAME=VALUE.")
    flags = parser.parse_args(argv)
    settings = {
        name: float(value) for name, _, value in (each.partition("=") for each in flags.set)
    }
    with fleet(flags.fleet, **settings) as running:
        kept = asyncio.run(measure(flags, running.url))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

"""Effect of a batch on interactive requests: `python -m tests.batch.interference --rate 2`.

Sends interactive requests at random times (open loop) to a running router, in rounds that alternate
between no batch and a batch that never runs out of lines. Prints percentiles of the time to first
token and of the inter-token latency of each round, their medians over the rounds, and the tokens
per second of both kinds of work. A last round runs the batch alone, which shows the capacity.
"""

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import openai

from serving.flags.parser import FlagParser
from tests.support.batches import CHATS
from tests.support.waiting import eventually

_LINES = 20_000
_WARM_UP = 5.0
"""Warm-up time of a round, seconds."""


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
    """Return a quantile; NaN without values."""
    ordered = sorted(values)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


async def ask(sdk: openai.AsyncOpenAI, number: int, tokens: int, into: Round) -> None:
    """Send one streamed request and record its latencies."""
    begun = last = time.perf_counter()
    stream = await sdk.chat.completions.create(
        model="pocket-r1",
        messages=[{"role": "user", "content": f"{number % 97}+{number % 89}"}],
        max_tokens=tokens,
        stream=True,
        extra_body={"ignore_eos": True},
        extra_headers={"x-priority": "interactive"},
    )
    first = True
    async for chunk in stream:
        if not chunk.choices:
            continue
        now = time.perf_counter()
        (into.ttft if first else into.itl).append(now - (begun if first else last))
        first, last = False, now
        into.tokens += 1


async def traffic(
    sdk: openai.AsyncOpenAI, rate: float, tokens: int, seconds: float, chance: random.Random
) -> Round:
    """Send requests for some seconds; requests sent during the warm-up are not recorded."""
    found, unrecorded = Round(seconds=seconds), Round()
    begun, tasks = time.perf_counter(), []
    while (now := time.perf_counter() - begun) < seconds + _WARM_UP:
        into = found if now >= _WARM_UP else unrecorded
        tasks.append(asyncio.create_task(ask(sdk, len(tasks), tokens, into)))
        await asyncio.sleep(chance.expovariate(rate))
    await asyncio.gather(*tasks)
    return found


async def batch_tokens(http: httpx.AsyncClient) -> float:
    """Return the number of prompt and generated tokens of lines until now."""
    total = 0.0
    for line in (await http.get("/metrics")).text.splitlines():
        if line.startswith('moe_batch_tokens_total{kind="generated"}'):
            total += float(line.split()[-1])
    return total


async def submit(sdk: openai.AsyncOpenAI, tokens: int) -> str:
    """Start a batch with more lines than a round can run; return its id."""
    lines = "\n".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": CHATS,
                "body": {
                    "messages": [{"role": "user", "content": f"{number}+{number % 83}"}],
                    "max_tokens": tokens,
                    "ignore_eos": True,
                },
            }
        )
        for number in range(_LINES)
    )
    file = await sdk.files.create(file=lines.encode(), purpose="batch")
    batch = await sdk.batches.create(input_file_id=file.id, endpoint=CHATS, completion_window="24h")

    async def validated() -> bool:
        return (await sdk.batches.retrieve(batch.id)).status != "validating"

    await eventually(validated, "the validation", interval=0.2)
    return batch.id


async def measure(url: str, rate: float, tokens: int, rounds: int, seconds: float) -> None:
    """Run all rounds and print them."""
    chance = random.Random(1)
    names = ("TTFT p50", "p99 ms", "ITL p50", "p99 ms", "tokens/s", "batch tokens/s")
    print(f"{'':16}" + "".join(f"{name:>16}" for name in names))
    rows: dict[str, list[list[float]]] = {"without batch": [], "with batch": []}
    async with (
        httpx.AsyncClient(base_url=url, timeout=60) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120) as sdk,
    ):
        for number in range(2 * rounds):
            kind = list(rows)[number % 2]
            batch = await submit(sdk, tokens) if number % 2 else None
            counted = asyncio.create_task(traffic(sdk, rate, tokens, seconds, chance))
            await asyncio.sleep(_WARM_UP)
            before = await batch_tokens(http)
            await asyncio.sleep(seconds)
            after = await batch_tokens(http)
            found = await counted
            found.batch_tokens = after - before
            if batch is not None:
                await sdk.batches.cancel(batch)
            rows[kind].append(found.row())
            show(kind, rows[kind][-1])
        batch = await submit(sdk, tokens)
        await asyncio.sleep(_WARM_UP)
        before, begun = await batch_tokens(http), time.perf_counter()
        await asyncio.sleep(seconds)
        alone = Round(batch_tokens=await batch_tokens(http) - before)
        alone.seconds = time.perf_counter() - begun
        await sdk.batches.cancel(batch)
        show("batch alone", alone.row())
    print("medians of the rounds")
    medians = {
        kind: [statistics.median(column) for column in zip(*found, strict=True)]
        for kind, found in rows.items()
    }
    for kind, found in medians.items():
        show(kind, found)
    without, beside = medians.values()
    capacity = alone.batch_tokens / alone.seconds
    idle = capacity - without[4]
    print(f"p99 TTFT {beside[1] / without[1]:.2f}, p99 ITL {beside[3] / without[3]:.2f} of without")
    print(f"interactive load {without[4] / capacity:.0%} of the batch's tokens/s alone; the batch")
    print(f"used {beside[5] / idle:.0%} of the rest")


def show(kind: str, row: list[float]) -> None:
    """Print one row."""
    print(f"{kind:16}" + "".join(f"{value:16.1f}" for value in row), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = FlagParser(prog="python -m tests.batch.interference", description=__doc__)
    parser.add_argument("--rest-url", default="http://127.0.0.1:8000", help="Router.")
    parser.add_argument("--rate", type=float, default=2.0, help="Requests per second.")
    parser.add_argument("--tokens", type=int, default=32, help="Tokens of an answer.")
    parser.add_argument("--rounds", type=int, default=3, help="Rounds of each kind.")
    parser.add_argument("--seconds", type=float, default=20.0, help="Measured time of a round.")
    flags = parser.parse_args(argv)
    asyncio.run(measure(flags.rest_url, flags.rate, flags.tokens, flags.rounds, flags.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())

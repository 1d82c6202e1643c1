"""Five times as much as the fleet can do, from two tenants: what becomes of it, as a table.

    python -m tests.overload.run --seconds 60

Clients arrive at fixed rates whatever becomes of them (open loop), in a process of their own.
Exits with 1 when one of the promises is broken.
"""

import asyncio
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
import yaml

from serving.edge.auth.keys import digest_of, new_key
from serving.flag_parser import FlagParser
from serving.flag_values import AMOUNT
from tests.overload.fleet import CAPACITY, MAX_WAIT, TOKENS

TIMES = 5.0
"""Offered load in units of the capacity."""
SHARES = {"eager": 0.7, "modest": 0.3}
"""Of the offered load; each alone asks for more than half of the capacity."""
FILLING = 2 * MAX_WAIT
"""Seconds until slots and queue are full; what is promised under overload counts from there."""
ALONE = 20
"""Requests one after the other beforehand: the time to a first token without any load."""

TTFT_FACTOR = 2.0
REFUSAL = 0.050  # seconds
UNFAIRNESS = 0.10
RSS_GROWTH = 32 * 2**20  # bytes, second half against first


@dataclass
class Seen:
    """What the clients of one tenant saw."""

    ends: Counter[str] = field(default_factory=Counter)
    ttft: list[float] = field(default_factory=list)
    """Seconds, of those that were served, counted from when they arrived."""
    refused_after: list[float] = field(default_factory=list)
    tokens: int = 0
    """That came while the overload lasted."""


async def ask(
    session: aiohttp.ClientSession, key: str, seen: Seen, window: tuple[float, float]
) -> None:
    """Ask for a streamed completion and note how it went."""
    body = {"model": "pocket-r1", "prompt": "abc", "max_tokens": TOKENS, "stream": True}
    began = time.monotonic()
    try:
        async with session.post(
            "/v1/completions", json=body, headers={"authorization": f"Bearer {key}"}
        ) as answer:
            if answer.status != 200:
                await answer.read()
                if began >= window[0]:
                    seen.refused_after.append(time.monotonic() - began)
                seen.ends[str(answer.status)] += 1
                return
            first = True
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                now = time.monotonic()
                if first and began >= window[0]:
                    seen.ttft.append(now - began)
                first = False
                seen.tokens += window[0] <= now <= window[1]
            seen.ends["200"] += 1
    except aiohttp.ClientError as error:
        seen.ends[type(error).__name__] += 1


@contextlib.asynccontextmanager
async def fleet(keys_file: Path) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Start the overloaded process; yields its address and itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.overload.fleet",
        str(keys_file),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "VLLM_CONFIGURE_LOGGING": "0"},
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        async with asyncio.timeout(180):
            while not (line := await process.stdout.readline()).startswith(b"FLEET "):
                if not line:
                    raise RuntimeError("the fleet did not start")
        address = json.loads(line.removeprefix(b"FLEET "))
        yield address["rest"], psutil.Process(address["pid"])
    finally:
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(15):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def arrive(
    session: aiohttp.ClientSession,
    key: str,
    rate: float,
    seen: Seen,
    window: tuple[float, float],
    began: float,
) -> None:
    """Send requests at a rate until the window closes."""
    async with asyncio.TaskGroup() as group:
        for number in itertools.count():
            due = began + number / rate
            if due >= window[1]:
                return
            await asyncio.sleep(max(due - time.monotonic(), 0))
            group.create_task(ask(session, key, seen, window))


async def watch(process: psutil.Process, sizes: list[int]) -> None:
    """Note the fleet's memory for as long as it runs."""
    while True:
        sizes.append(process.memory_info().rss)
        await asyncio.sleep(0.5)


def point(values: Sequence[float], share: float) -> float:
    """Return a quantile; infinite for none."""
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))] if ordered else float("inf")


async def overload(seconds: float) -> bool:
    """Run it and print the table; returns whether all promises were kept."""
    keys = {tenant: new_key() for tenant in SHARES}
    entries = [
        {"id": tenant, "hash": digest_of(key), "tenant": tenant} for tenant, key in keys.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.yaml"
        file.write_text(yaml.safe_dump({"keys": entries}), "utf-8")
        async with (
            fleet(file) as (rest, process),
            aiohttp.ClientSession(rest, connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            alone = Seen()
            for _ in range(ALONE):  # the fleet learns its rate from them too
                await ask(session, keys["modest"], alone, (0.0, 0.0))
            seen = {tenant: Seen() for tenant in SHARES}
            began = time.monotonic()
            window = (began + min(FILLING, seconds / 3), began + seconds)
            sizes: list[int] = []
            watching = asyncio.create_task(watch(process, sizes))
            async with asyncio.TaskGroup() as group:
                for tenant, share in SHARES.items():
                    rate = share * TIMES * CAPACITY
                    group.create_task(
                        arrive(session, keys[tenant], rate, seen[tenant], window, began)
                    )
            watching.cancel()
    return report(alone, seen, sizes)


def report(alone: Seen, seen: dict[str, Seen], sizes: list[int]) -> bool:
    """Print what was seen against what is promised."""
    ttft = [value for each in seen.values() for value in each.ttft]
    refused = [value for each in seen.values() for value in each.refused_after]
    tokens = [each.tokens for each in seen.values()]
    mean = sum(tokens) / len(tokens)
    bound = MAX_WAIT + point(alone.ttft, 0.99)
    middle = len(sizes) // 2
    growth = max(sizes[middle:]) - max(sizes[:middle])
    ends = sum((each.ends for each in seen.values()), Counter())
    unfair = max(abs(value - mean) for value in tokens) / mean if mean else float("inf")
    rows = [
        (
            f"p99 of time to first token, accepted ({len(ttft)})",
            f"{point(ttft, 0.99):.3f} s",
            f"{TTFT_FACTOR:g} x {bound:.3f} s (admission.max_wait + p99 without load)",
            point(ttft, 0.99) <= TTFT_FACTOR * bound,
        ),
        (
            f"p99 of time to refusal ({len(refused)})",
            f"{point(refused, 0.99) * 1000:.1f} ms (median {point(refused, 0.5) * 1000:.1f})",
            f"{REFUSAL * 1000:.0f} ms",
            point(refused, 0.99) < REFUSAL,
        ),
        (
            "growth of the router's memory, second half",
            f"{growth / 2**20:.1f} MiB",
            f"{RSS_GROWTH / 2**20:.0f} MiB",
            growth < RSS_GROWTH,
        ),
        (
            "tokens of tenants of equal weight",
            f"{' : '.join(map(str, tokens))} ({unfair:.1%} off)",
            f"{UNFAIRNESS:.0%} off",
            unfair <= UNFAIRNESS,
        ),
        ("how requests ended", str(dict(ends)), "200 or 429", set(ends) == {"200", "429"}),
    ]
    for name, value, promise, kept in rows:
        print(f"{'ok  ' if kept else 'FAIL'} {name:<52} {value:<38} promised: {promise}")  # noqa: T201
    return all(kept for *_, kept in rows)


def main() -> None:
    """Read the arguments and run."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--seconds", type=AMOUNT, default=60.0)
    sys.exit(0 if asyncio.run(overload(parser.parse_args().seconds)) else 1)


if __name__ == "__main__":
    main()

"""Overload: two tenants send five times what the fleet can serve; prints a table.

    python -m tests.overload.run --seconds 60

Requests arrive at fixed rates (open loop); the fleet runs in another process. The exit code is 1
if a target is missed.
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

import psutil
import yaml

from serving.client.aio import AsyncRestClient
from serving.client.chat import GenerateOptions, GenerateRequest, Message
from serving.client.credentials import Access
from serving.client.errors import ClientError
from serving.edge.auth.keys import digest_of, new_key
from serving.flags.parser import FlagParser
from serving.flags.values import AMOUNT
from tests.overload.fleet import CAPACITY, MAX_WAIT, TOKENS

TIMES = 5.0
"""Offered load, in units of the fleet's capacity."""
SHARES = {"eager": 0.7, "modest": 0.3}
"""Shares of the offered load; each tenant alone needs more than half of the capacity."""
FILLING = 2 * MAX_WAIT
"""Seconds until slots and queue are full; measurements begin then."""
ALONE = 20
"""Requests sent one after the other first, for the time to first token without load."""

TTFT_FACTOR = 2.0
REFUSAL = 0.050  # seconds
UNFAIRNESS = 0.10
RSS_GROWTH = 32 * 2**20  # bytes, second half against first


@dataclass
class Seen:
    """Measurements of one tenant's requests."""

    ends: Counter[str] = field(default_factory=Counter)
    ttft: list[float] = field(default_factory=list)
    """Seconds from arrival to first token, for accepted requests."""
    refused_after: list[float] = field(default_factory=list)
    tokens: int = 0
    """Output tokens received during the overload."""


REQUEST = GenerateRequest((Message("user", "abc"),), TOKENS)
OPTIONS = GenerateOptions("pocket-r1", "completions")


async def ask(client: AsyncRestClient, seen: Seen, window: tuple[float, float]) -> None:
    """Stream one completion and record the result.

    Args:
        client: With the tenant's key.
        seen: The tenant's measurements.
        window: When the overload begins and ends, on the monotonic clock.
    """
    began = time.monotonic()
    first = True
    try:
        async for delta in client.generate(REQUEST, OPTIONS):
            if not delta.text:
                continue
            now = time.monotonic()
            if first and began >= window[0]:
                seen.ttft.append(now - began)
            first = False
            seen.tokens += window[0] <= now <= window[1]
        seen.ends["200"] += 1
    except ClientError as error:
        if error.status is not None and began >= window[0]:
            seen.refused_after.append(time.monotonic() - began)
        seen.ends[str(error.status or error.kind)] += 1


@contextlib.asynccontextmanager
async def fleet(keys_file: Path) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Start the fleet; yield its REST address and its process."""
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
                    raise RuntimeError("the fleet did not become ready")
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
    client: AsyncRestClient,
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
            group.create_task(ask(client, seen, window))


async def watch(process: psutil.Process, sizes: list[int]) -> None:
    """Append the fleet's resident memory to ``sizes`` every half second."""
    while True:
        sizes.append(process.memory_info().rss)
        await asyncio.sleep(0.5)


def point(values: Sequence[float], share: float) -> float:
    """Return a quantile; infinity without values."""
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))] if ordered else float("inf")


async def overload(seconds: float) -> bool:
    """Run the overload and print the table; return whether all targets were met."""
    keys = {tenant: new_key() for tenant in SHARES}
    entries = [
        {"id": tenant, "hash": digest_of(key), "tenant": tenant} for tenant, key in keys.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.yaml"
        file.write_text(yaml.safe_dump({"keys": entries}), "utf-8")
        async with fleet(file) as (rest, process), contextlib.AsyncExitStack() as stack:
            clients = {
                tenant: await stack.enter_async_context(AsyncRestClient(rest, Access(key)))
                for tenant, key in keys.items()
            }
            alone = Seen()
            for _ in range(ALONE):  # admission's predictor learns the rate from these
                await ask(clients["modest"], alone, (0.0, 0.0))
            seen = {tenant: Seen() for tenant in SHARES}
            began = time.monotonic()
            window = (began + min(FILLING, seconds / 3), began + seconds)
            sizes: list[int] = []
            watching = asyncio.create_task(watch(process, sizes))
            async with asyncio.TaskGroup() as group:
                for tenant, share in SHARES.items():
                    rate = share * TIMES * CAPACITY
                    group.create_task(arrive(clients[tenant], rate, seen[tenant], window, began))
            watching.cancel()
    return report(alone, seen, sizes)


def report(alone: Seen, seen: dict[str, Seen], sizes: list[int]) -> bool:
    """Print the measurements and the targets; return whether all were met."""
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
        print(f"{'ok  ' if kept else 'FAIL'} {name:<52} {value:<38} limit: {promise}")  # noqa: T201
    return all(kept for *_, kept in rows)


def main() -> None:
    """Run the command line."""
    parser = FlagParser(description=__doc__)
    parser.add_argument("--seconds", type=AMOUNT, default=60.0)
    sys.exit(0 if asyncio.run(overload(parser.parse_args().seconds)) else 1)


if __name__ == "__main__":
    main()

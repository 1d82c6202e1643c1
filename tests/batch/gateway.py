"""A batch gateway in front of a router: sends lines as ordinary requests, a fixed number at a time.

    python -m tests.batch.gateway URL CONCURRENCY SEED

Each line of standard input is answered with the number of tokens generated until now. Ends with
standard input.
"""

import asyncio
import contextlib
import random
import sys

import aiohttp

from tests.batch.requests import body


async def run(url, concurrency, seed):
    """Send lines until standard input ends."""
    chance = random.Random(seed)
    tokens = 0

    async def lines(session):
        nonlocal tokens
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(
                    f"{url}/v1/chat/completions",
                    json=body(chance),
                    headers={"x-priority": "interactive"},
                ) as response:
                    answer = await response.json()
                    if response.status == 200:
                        tokens += answer["usage"]["completion_tokens"]
                    else:
                        await asyncio.sleep(0.2)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(120)
    ) as session:
        tasks = [asyncio.create_task(lines(session)) for _ in range(concurrency)]
        while await asyncio.to_thread(sys.stdin.readline):
            print(tokens, flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))

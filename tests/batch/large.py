"""The memory of a router with a large batch: `python -m tests.batch.large --lines 1000000`.

Uploads one file, creates a batch of all its lines, runs lines for some time, cancels the batch, so
that the results of all lines are written, and reads the results. Prints time, CPU time and the
largest resident memory of the router's process in each step; the exit code is 1 if the memory grew
by more than 64 MiB.
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import aiohttp
import psutil

from serving.flags.parser import FlagParser
from tests.batch.fleet import fleet
from tests.support.batches import CHATS
from tests.support.waiting import eventually

_LOOK = 0.05
"""Interval at which the memory is read, seconds."""
_TIMEOUT = 3600.0
_LIMIT = 64 * 2**20
"""Permitted growth of the memory, bytes."""


def parts(lines: int, size: int) -> Iterator[bytes]:
    """Yield an input file in parts of 1,000 lines, each line of ``size`` bytes."""
    for first in range(0, lines, 1000):
        found = []
        for number in range(first, min(first + 1000, lines)):
            line = {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": CHATS,
                "body": {
                    "model": "pocket-r1",
                    "messages": [{"role": "user", "content": f"{number}+1"}],
                    "max_tokens": 4,
                    "metadata": {"text": ""},
                },
            }
            length = len(json.dumps(line)) + 1
            line["body"]["metadata"]["text"] = "x" * max(size - length, 0)
            found.append(json.dumps(line) + "\n")
        yield "".join(found).encode()


class Measured:
    """Prints what a process used in each step."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.peaks: list[int] = []

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        """Measure a step."""
        begun, cpu = time.monotonic(), sum(self._process.cpu_times()[:2])
        peak = self._process.memory_info().rss

        async def look() -> None:
            nonlocal peak
            while True:
                peak = max(peak, self._process.memory_info().rss)
                await asyncio.sleep(_LOOK)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
        self.peaks.append(peak)
        used = sum(self._process.cpu_times()[:2]) - cpu
        print(
            f"{name:32} {time.monotonic() - begun:8.1f} s, CPU {used:7.1f} s, "
            f"largest resident memory {peak / 2**20:6.1f} MiB",
            flush=True,
        )


class Client:
    """Calls the routes of files and batches."""

    def __init__(self, http: aiohttp.ClientSession, size: int) -> None:
        self._http = http
        self._size = size

    async def call(self, method: str, path: str, **arguments: Any) -> Any:
        async with self._http.request(method, path, **arguments) as response:
            response.raise_for_status()
            return await response.json()

    async def upload(self, lines: int) -> str:
        async def content() -> AsyncIterator[bytes]:
            for part in parts(lines, self._size):
                yield part

        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", content(), filename="lines.jsonl")
        return (await self.call("POST", "/v1/files", data=form))["id"]

    async def create(self, file: str) -> str:
        new = {"input_file_id": file, "endpoint": CHATS, "completion_window": "24h"}
        return (await self.call("POST", "/v1/batches", json=new))["id"]

    async def becomes(self, batch: str, status: str) -> Any:
        async def reached() -> Any:
            found = await self.call("GET", f"/v1/batches/{batch}")
            return found if found["status"] == status else None

        return await eventually(reached, f"{batch} {status}", timeout=_TIMEOUT, interval=0.5)

    async def results(self, batch: Any) -> int:
        """Return the number of lines in the result files."""
        found = 0
        for name in ("output_file_id", "error_file_id"):
            if batch[name] is not None:
                async with self._http.get(f"/v1/files/{batch[name]}/content") as response:
                    async for part in response.content.iter_any():
                        found += part.count(b"\n")
        return found


async def measure(url: str, pid: int, lines: int, size: int, seconds: float) -> bool:
    """Run all steps; return whether the memory stayed flat and every line has a result."""
    measured = Measured(pid)
    timeout = aiohttp.ClientTimeout(_TIMEOUT)
    async with aiohttp.ClientSession(url, timeout=timeout) as http:
        client = Client(http, size)
        async with measured.step("100 lines, from upload to results"):
            await client.becomes(await client.create(await client.upload(100)), "completed")
        async with measured.step(f"upload of {lines:,} lines"):
            file = await client.upload(lines)
        stored = (await client.call("GET", f"/v1/files/{file}"))["bytes"]
        batch = await client.create(file)
        async with measured.step(f"validation of {stored:,} bytes"):
            await client.becomes(batch, "in_progress")
        async with measured.step(f"lines for {seconds:g} s"):
            await asyncio.sleep(seconds)
        async with measured.step("cancellation, writing of results"):
            await client.call("POST", f"/v1/batches/{batch}/cancel")
            ended = await client.becomes(batch, "cancelled")
        async with measured.step("download of the results"):
            results = await client.results(ended)
    print(f"{ended['request_counts']}, {results:,} results")
    growth = max(measured.peaks[1:]) - measured.peaks[0]
    print(f"growth of the memory {growth / 2**20:.1f} MiB, limit {_LIMIT / 2**20:.0f} MiB")
    return growth <= _LIMIT and results == lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = FlagParser(prog="python -m tests.batch.large", description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000, help="Lines of the batch.")
    parser.add_argument("--bytes", type=int, default=1000, help="Size of a line, bytes.")
    parser.add_argument("--seconds", type=float, default=60.0, help="Time for which lines run.")
    flags = parser.parse_args(argv)
    with fleet("simulated") as running:
        kept = asyncio.run(
            measure(running.url, running.pid, flags.lines, flags.bytes, flags.seconds)
        )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

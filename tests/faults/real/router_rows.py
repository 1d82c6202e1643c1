"""Rows about the router and its clients: a killed router, and clients that do not read."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from urllib.parse import urlsplit

import psutil

from tests.faults.real.deployment import WRITE_TIMEOUT, Deployment
from tests.faults.real.rows import Row, in_flight, row_of
from tests.faults.real.streams import PATIENCE, Run, Stream, again, ask_all, prompt_of
from tests.faults.real.system import RankProcess

_POLL = 0.05
_BUSY = 0.3
"""Share of a core above which an engine counts as working; an idle one uses a few percent."""
_STUCK = 8
"""Number of clients that do not read."""
GROWTH = 64 * 2**20
"""Maximum growth of the router's memory because of them, bytes: socket buffers, whole answers, and
the growth of a process that has just served its first requests."""


async def kill_router(running: Deployment, reference: Run, max_tokens: int) -> Row:
    """``kill -9`` of the router while all streams run.

    Its clients must lose their connections and must not have received wrong output before that, the
    engines must stop their requests, the same ranks must join the router that ``up`` restarts, and
    the same requests must then give the same texts.
    """
    before = await running.ready()
    engines = [
        process for group in before.values() for rank in group for process in rank.tree()[1:]
    ]
    async with in_flight(running, reference, max_tokens) as (lost, asking):
        lost.struck_at = time.monotonic()
        psutil.Process(running.router_pid()).kill()
        quiet = asyncio.create_task(_quiet_after(engines, lost.struck_at))
        await asking
    errors = max(stream.ended_at for stream in lost.streams) - lost.struck_at
    aborted = await quiet
    recovered = await running.until_whole()
    after = await running.ready()
    run = again(reference)
    await ask_all(running, run, max_tokens)
    row = row_of(running, "kill -9 of the router", reference, run, recovered=recovered)
    trouble = [*row.trouble]
    if any(stream.complete or not stream.error for stream in lost.streams):
        trouble.append("some streams of the dead router did not end with an error")
    if not all(map(_begins, lost.streams, reference.streams)):
        trouble.append("a stream of the dead router had got something else")
    if _pids(after) != _pids(before):
        trouble.append(f"ranks were {_pids(before)}, are {_pids(after)}")
    note = (
        f"{len(lost.streams)} connection errors within {errors:.1f} s, engines idle after "
        f"{aborted:.1f} s, the same {len(_pids(after))} ranks back; then asked again"
    )
    return replace(row, note=note, trouble=tuple(trouble))


async def slow_consumers(running: Deployment, reference: Run, max_tokens: int) -> Row:
    """Clients that request long answers and read nothing, in addition to all others.

    The others must not be affected, the router must not grow, and no request of these clients may
    be in flight ``router.write_timeout`` after they stopped reading.
    """
    router = psutil.Process(running.router_pid())
    run = again(reference)
    async with _not_reading(running) as began:
        before = router.memory_info().rss
        await ask_all(running, run, max_tokens)
        grown = router.memory_info().rss - before
        async with asyncio.timeout(PATIENCE):
            while await _inflight(running):  # noqa: ASYNC110
                await asyncio.sleep(_POLL * 4)
        held = time.monotonic() - began
    what = f"{_STUCK} clients that do not read"
    row = row_of(running, what, reference, run, recovered=None)
    trouble = [*row.trouble]
    if grown > GROWTH:
        trouble.append(f"the router grew by {grown / 2**20:.0f} MiB")
    note = (
        f"router grew by {grown / 2**20:.1f} MiB; nothing of theirs in flight {held:.0f} s after "
        f"they came (write_timeout {WRITE_TIMEOUT:g} s)"
    )
    return replace(row, note=note, trouble=tuple(trouble))


@contextlib.asynccontextmanager
async def _not_reading(running: Deployment) -> AsyncIterator[float]:
    """Request long answers over connections with small buffers, and do not read them."""
    address = urlsplit(running.rest)
    assert address.hostname is not None
    with contextlib.ExitStack() as stack:
        for number in range(_STUCK):
            body = json.dumps(
                {
                    "model": running.model,
                    "prompt": prompt_of(number),
                    "max_tokens": 1500,
                    "ignore_eos": True,
                    "stream": True,
                    "logprobs": 5,
                }
            )
            head = (
                f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
                "content-type: application/json\r\n\r\n"
            )
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((address.hostname, address.port or 80))
            client.sendall(f"{head}{body}".encode())
        yield time.monotonic()


async def _quiet_after(engines: list[psutil.Process], since: float) -> float:
    """Return the time of the engines' last work for the streams, in seconds after ``since``."""
    last_busy, spent, at = since, _cpu_seconds(engines), time.monotonic()
    while at - last_busy < 2.0:
        await asyncio.sleep(_POLL * 2)
        now, used = time.monotonic(), _cpu_seconds(engines)
        if used - spent > _BUSY * (now - at):
            last_busy = now
        spent, at = used, now
    return last_busy - since


def _cpu_seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _pids(ranks: dict[str, list[RankProcess]]) -> list[int]:
    return sorted(rank.pid for group in ranks.values() for rank in group)


def _begins(lost: Stream, whole: Stream) -> bool:
    """Return whether a broken stream's text is a prefix of the complete text."""
    return all(whole.texts.get(index, "").startswith(text) for index, text in lost.texts.items())


async def _inflight(running: Deployment) -> int:
    """Return the number of requests that the router has in flight."""
    return sum(
        rank["inflight_requests"] for group in await running.fleet() for rank in group["ranks"]
    )


RouterRow = Callable[[Deployment, Run, int], Awaitable[Row]]
ROUTER_ROWS: dict[str, RouterRow] = {"kill-router": kill_router, "slow-consumer": slow_consumers}

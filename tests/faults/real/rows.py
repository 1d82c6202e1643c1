"""One row of the table: the streams of an undisturbed run, repeated with a fault in the middle."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tests.faults.real.streams import PATIENCE, Run, again, ask_all, new_run
from tests.faults.real.strikes import RealFault
from tests.faults.real.system import RankProcess, System
from tests.support.waiting import eventually

Running = TypeVar("Running", bound=System)

_POLL = 0.05
CHUNKS = 6
"""Chunks that every stream has received before the fault."""


@dataclass(frozen=True, slots=True)
class Row:
    """The effect of a fault on the streams."""

    groups: int
    fault: str
    streams: int
    completed: int
    equal: int
    longest_gap: float
    """Longest pause of any stream, seconds; in the undisturbed row, without a fault."""
    resumed_on: int
    """Streams on the affected group, according to /fleet."""
    recovered: float | None
    """Seconds from the fault until all groups were ready; ``None`` if not waited for."""
    trouble: tuple[str, ...] = ()
    note: str = ""
    """Other observations."""
    kinds: str = "greedy"
    """Kinds of requests: greedy, or all."""

    @property
    def good(self) -> bool:
        """Whether no stream was lost and all texts are equal."""
        return not self.trouble and self.completed == self.equal == self.streams


async def undisturbed(
    running: System, count: int, max_tokens: int, kinds: tuple[str, ...] = ("greedy",)
) -> tuple[Run, Row]:
    """Record the run that the others are compared with."""
    run = new_run(count, kinds)
    await ask_all(running, run, max_tokens)
    return run, row_of(running, "none", run, run, recovered=0.0)


@contextlib.asynccontextmanager
async def in_flight(
    running: System, reference: Run, max_tokens: int
) -> AsyncIterator[tuple[Run, "asyncio.Task[None]"]]:
    """Send the same requests again; enter when all of them stream."""
    run = again(reference)
    asking = asyncio.create_task(ask_all(running, run, max_tokens))
    try:
        await eventually(
            lambda: run.begun(CHUNKS) >= len(run.streams) or asking.done(), timeout=PATIENCE
        )
        yield run, asking
    finally:
        asking.cancel()


async def disturbed(
    running: Running,
    fault: RealFault[Running],
    reference: Run,
    max_tokens: int,
    *,
    wait: bool = True,
    aim: Callable[[], Awaitable[str | None]] | None = None,
) -> Row:
    """Run the same requests, inject a fault while all of them stream, and compare.

    Args:
        running: the system, with all groups ready.
        fault: the fault.
        reference: the undisturbed run.
        max_tokens: tokens per answer, as in the reference.
        wait: wait until all groups are ready again, which takes the start of a gang.
        aim: called while all of them stream; returns the group to hit, or None for the busiest.
    """
    async with in_flight(running, reference, max_tokens) as (run, asking):
        group = None if aim is None else await aim()
        victim, inflight = await _victim(running, group)
        run.struck_at = time.monotonic()
        before = set(await running.ready())
        await fault.inject(running, victim)
        whole = asyncio.create_task(whole_again(running, fault, before)) if wait else None
        await asking
        recovered = None if whole is None else await whole - run.struck_at
    running.finish_stopped()
    return row_of(running, fault.what, reference, run, recovered=recovered, inflight=inflight)


async def _victim(running: System, group: str | None) -> tuple[RankProcess, int]:
    """Choose the last rank of a group or of the busiest; the others rendezvous at rank 0."""
    ready = await running.ready()
    inflight = {
        group["group_id"]: sum(rank["inflight_requests"] for rank in group["ranks"])
        for group in await running.fleet()
        if group["group_id"] in ready
    }
    name = group or max(inflight, key=lambda name: inflight[name])
    return max(ready[name], key=lambda rank: rank.rank), inflight[name]


async def whole_again(running: Running, fault: RealFault[Running], before: set[str]) -> float:
    """Wait until all groups are ready again, one of them new or ready since the fault."""
    struck_at = time.time()
    async with asyncio.timeout(PATIENCE):
        while True:
            ready = [group for group in await running.fleet() if group["state"] == "ready"]
            names = {group["group_id"] for group in ready}
            noticed = any(group["since_unix_seconds"] > struck_at for group in ready)
            missed = (fault.restarts and not names - before) or (fault.fences and not noticed)
            if len(ready) >= running.groups and not missed:
                return time.monotonic()
            await asyncio.sleep(_POLL * 4)


def row_of(
    running: System,
    name: str,
    reference: Run,
    run: Run,
    *,
    recovered: float | None,
    inflight: int = 0,
) -> Row:
    """Compare a run with the undisturbed run."""
    completed = [stream for stream in run.streams if stream.complete]
    pairs = zip(reference.streams, run.streams, strict=True)
    trouble = [f"{s.over} {s.number} {s.kind}: {s.error}" for s in run.streams if s.error]
    return Row(
        running.groups,
        name,
        len(run.streams),
        len(completed),
        sum(one.texts == two.texts and two.complete for one, two in pairs),
        max(stream.longest_gap(run.struck_at) for stream in run.streams),
        inflight,
        recovered,
        tuple(trouble[:4]),
        kinds="greedy" if {stream.kind for stream in run.streams} == {"greedy"} else "all",
    )

"""Rows about whole nodes: a lost node, a network partition, a restart of Ray's head."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tests.faults.real.nodes import REDIS, OnNodes
from tests.faults.real.rows import Row, disturbed, in_flight, row_of, whole_again
from tests.faults.real.streams import PATIENCE, Run
from tests.faults.real.strikes import RealFault
from tests.faults.real.system import RankProcess
from tests.rig import netns

_POLL = 0.2
SHORT, LONG = 15.0, 100.0
"""Durations of a partition, seconds: above a link's keepalive, and above Ray's node timeout.

Between the two, from about 30 s on, Ray Serve's health checks have failed: the ranks join the
router again, but Ray Serve restarts them some time later.
"""
PATIENT = 60.0
"""Seconds after a fault by which Ray Serve would have stopped a rank that it considers lost."""


async def _lose(running: OnNodes, rank: RankProcess) -> None:
    running.lose(rank.node)
    # An operator or autoscaler would add a new node in its place.
    running.add_worker()


LOSE_NODE = RealFault("lose-node", "a whole node lost", _lose)


async def lose_node(running: OnNodes, reference: Run, max_tokens: int) -> Row:
    """Kill all processes of a node at once, with its network; add a new node in its place."""
    return await disturbed(running, LOSE_NODE, reference, max_tokens)


def cut_for(seconds: float, *, restarts: bool) -> "NodeRow":
    """Return the row of a partition that lasts this long."""

    async def cut_cable(running: OnNodes, reference: Run, max_tokens: int) -> Row:
        """Drop all packets to and from a node for a while, without an error to either side."""
        mending: list[asyncio.Task[None]] = []

        async def cut(running: OnNodes, rank: RankProcess) -> None:
            node = running.nodes[rank.node].node
            running.networks.cut(node)
            mending.append(asyncio.create_task(_mend(running, node, seconds)))

        fault = RealFault("cut-cable", f"a node's cable cut for {seconds:g} s", cut, restarts)
        before, began = await running.ready(), time.monotonic()
        try:
            row = await disturbed(running, fault, reference, max_tokens)
        finally:
            await asyncio.gather(*mending)
        if restarts:
            return row
        await asyncio.sleep(max(0.0, began + PATIENT - time.monotonic()))
        after = await running.ready()
        if after != before:
            return replace(row, trouble=(*row.trouble, f"ranks were {before}, are {after}"))
        return replace(row, note="the very same ranks came back, and stayed")

    return cut_cable


async def _mend(running: OnNodes, node: netns.Node, after: float) -> None:
    await asyncio.sleep(after)
    running.networks.mend(node)


async def kill_gcs(running: OnNodes, reference: Run, max_tokens: int) -> Row:
    """``kill -9`` of Ray's GCS, whose state is in Redis; the head is restarted.

    No token passes through the GCS: no stream may be affected, and the ranks must remain the same.
    Afterwards, Ray and Ray Serve must have found them again and replace a killed rank.
    """
    before = await running.ready()
    async with in_flight(running, reference, max_tokens) as (run, asking):
        run.struck_at, struck = time.monotonic(), time.time()
        running.head_process("gcs_server").kill()
        known = asyncio.create_task(_known_again(running, running.head.starts))
        await asking
        recovered = await known - run.struck_at
    row = row_of(running, "kill -9 of Ray's GCS", reference, run, recovered=recovered)
    trouble = [*row.trouble]
    if await running.ready() != before:
        trouble.append(f"ranks were {before}, are {await running.ready()}")
    trouble += [
        f"group {group['group_id']} was out of service: {group['reason']}"
        for group in await running.fleet()
        if group["since_unix_seconds"] > struck
    ]
    name, ranks = min(before.items())
    began = time.monotonic()
    running.process_of(ranks[-1]).kill()
    fault = RealFault("", "", _lose)
    replaced = await whole_again(running, fault, set(before)) - began
    after = await running.ready()
    others = before.keys() - {name}
    if any(after.get(other) != before[other] for other in others):
        trouble.append(f"more than the struck group was restarted: {before} became {after}")
    note = (
        f"the head was started again and knew the same {sum(map(len, before.values()))} ranks; "
        f"a rank killed after that was replaced by Serve in {replaced:.1f} s"
    )
    return replace(row, note=note, trouble=tuple(trouble))


async def _known_again(running: OnNodes, started: int) -> float:
    """Wait until the new head reports that the application runs."""
    async with asyncio.timeout(PATIENCE):
        while True:
            new = running.head.starts > started and running.head.up()
            if new and ": running" in await running.group_status():
                return time.monotonic()
            await asyncio.sleep(_POLL)


NodeRow = Callable[[OnNodes, Run, int], Awaitable[Row]]
NODE_ROWS: dict[str, NodeRow] = {
    "kill-gcs": kill_gcs,
    "lose-node": lose_node,
    "cut-cable": cut_for(SHORT, restarts=False),
    "cut-cable-long": cut_for(LONG, restarts=True),
}


def why_not(name: str) -> str | None:
    """Return why this machine cannot run a row, apart from the nodes, or ``None`` if it can."""
    if name == "kill-gcs" and not REDIS.exists():
        return "no Redis server in .tools/redis: .ci/tools fetches it and says if it cannot"
    return None

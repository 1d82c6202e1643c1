"""The kinds of faults, one function each."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.faults.cluster import Cluster, SimRank, Supervisor

Inject = Callable[[Cluster, random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault."""

    name: str
    inject: Inject
    silent: bool = False
    """Whether the router only detects it by the keepalive timeout, which delays ends and aborts."""


def _rank(cluster: Cluster, rng: random.Random) -> SimRank | None:
    living = cluster.living()
    return rng.choice(living) if living else None


def _group(cluster: Cluster, rng: random.Random) -> Supervisor:
    return rng.choice(cluster.groups)


async def kill_rank(cluster: Cluster, rng: random.Random) -> None:
    rank = _rank(cluster, rng)
    if rank is not None:
        rank.kill()


async def fail_engine(cluster: Cluster, rng: random.Random) -> None:
    rank = _rank(cluster, rng)
    if rank is not None:
        cluster.note(f"engine of {rank.name} fails")
        rank.engine.fail()
        rank.hang_gang()
        rank.engine.resume()


async def stall(cluster: Cluster, rng: random.Random) -> None:
    """A step that takes long, or never ends."""
    rank = _rank(cluster, rng)
    if rank is None:
        return
    seconds = rng.choice((0.5, 2.0, 1.5 * cluster.shape.stall_timeout, 600.0))
    cluster.note(f"{rank.name} stalls for {seconds} s")
    rank.hang_gang()
    await asyncio.sleep(seconds)
    rank.resume_gang()


async def cut_link(cluster: Cluster, rng: random.Random) -> None:
    rank = _rank(cluster, rng)
    wires = cluster.network.of(rank.name) if rank is not None else []
    if wires:
        wire = rng.choice(wires)
        cluster.note(f"the link {wire.client} - {wire.server} is cut")
        wire.cut("connection reset by peer")


async def half_open(cluster: Cluster, rng: random.Random) -> None:
    """Packets are lost, in one direction or both, for a while or until the keepalive timeout."""
    rank = _rank(cluster, rng)
    wires = cluster.network.of(rank.name) if rank is not None else []
    if not wires:
        return
    wire = rng.choice(wires)
    up, down = rng.choice(((True, True), (True, False), (False, True)))
    seconds = rng.choice((0.3, 0.5 * cluster.shape.keepalive, 60.0))
    cluster.note(
        f"the link {wire.client} - {wire.server} is half open for {seconds} s "
        f"(up {up}, down {down})"
    )
    wire.freeze(up=up, down=down)
    await asyncio.sleep(seconds)
    wire.thaw()


async def stop_process(cluster: Cluster, rng: random.Random) -> None:
    rank = _rank(cluster, rng)
    if rank is None or rank.stopped_since is not None:
        return
    seconds = rng.choice((0.3, 3.0, 60.0))
    cluster.note(f"{rank.name} is stopped (SIGSTOP) for {seconds} s")
    rank.stop_process()
    await asyncio.sleep(seconds)
    if rank.alive:
        rank.continue_process()


async def slow_rank(cluster: Cluster, rng: random.Random) -> None:
    rank = _rank(cluster, rng)
    if rank is not None:
        cluster.note(f"{rank.name} runs at a tenth of its speed for 2 s")
        rank.engine.slowness = 10.0
        await asyncio.sleep(2.0)
        rank.engine.slowness = 1.0


async def slow_link(cluster: Cluster, rng: random.Random) -> None:
    rank = _rank(cluster, rng)
    wires = cluster.network.of(rank.name) if rank is not None else []
    if wires:
        wire = rng.choice(wires)
        cluster.note(f"the link {wire.client} - {wire.server} has a latency of 0.3 s for 2 s")
        wire.slow(0.3)
        await asyncio.sleep(2.0)
        wire.slow(0.0005)


async def drain_group(cluster: Cluster, rng: random.Random) -> None:
    group = _group(cluster, rng)
    cluster.note(f"draining {group.name}")
    group.drain()


async def kill_all(cluster: Cluster, rng: random.Random) -> None:
    """Every group loses a rank at once, so no group is ready."""
    del rng
    for group in cluster.groups:
        for rank in group.ranks[:1]:
            rank.kill()


async def kill_router(cluster: Cluster, rng: random.Random) -> None:
    living = [router for router in cluster.routers if router.alive]
    if len(living) > 1:
        rng.choice(living).die()


async def hand_over(cluster: Cluster, rng: random.Random) -> None:
    """An operator moves a group's requests to other groups, and uncordons it shortly afterwards."""
    router = rng.choice([router for router in cluster.routers if router.alive])
    groups = router.membership.snapshot().groups
    if not groups:
        return
    group = rng.choice(groups).group_id
    cluster.note(f"{router.name}: handing over the requests of {group}")
    router.membership.move_requests(group, "hand-over by the test")
    await asyncio.sleep(1.0)
    if any(found.group_id == group for found in router.membership.snapshot().groups):
        router.membership.uncordon(group)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill_rank", kill_rank),
        Fault("fail_engine", fail_engine),
        Fault("stall", stall, silent=True),
        Fault("cut_link", cut_link),
        Fault("half_open", half_open, silent=True),
        Fault("stop_process", stop_process, silent=True),
        Fault("slow_rank", slow_rank),
        Fault("slow_link", slow_link, silent=True),
        Fault("drain_group", drain_group),
        Fault("kill_all", kill_all),
        Fault("kill_router", kill_router),
        Fault("hand_over", hand_over),
    )
}

"""Faults for a real system, by name."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tests.faults.real.deployment import Deployment
from tests.faults.real.system import RankProcess, System

Struck = TypeVar("Struck", bound=System)


@dataclass(frozen=True, slots=True)
class RealFault(Generic[Struck]):
    """A kind of fault."""

    name: str
    what: str
    inject: Callable[[Struck, RankProcess], Awaitable[None]]
    restarts: bool = True
    """Whether Ray Serve has to restart a gang."""
    fences: bool = True
    """Whether the fault takes a group out of service, however briefly."""


async def kill_core(running: Deployment, rank: RankProcess) -> None:
    """Kill the engine core: vLLM's scheduler and the model."""
    del running
    rank.named("EngineCore").send_signal(signal.SIGKILL)


async def kill_actor(running: Deployment, rank: RankProcess) -> None:
    """Kill the Serve replica, and its link with it."""
    del running
    rank.tree()[0].send_signal(signal.SIGKILL)


async def stop_rank(running: Deployment, rank: RankProcess) -> None:
    """Stop the whole rank: its connections stay open but nothing answers."""
    for process in rank.tree():
        process.send_signal(signal.SIGSTOP)
        running.stopped.append(process)


async def stop_core(running: Deployment, rank: RankProcess) -> None:
    """Stop the engine alone: the link works, the engine makes no step."""
    for process in rank.tree()[1:]:
        process.send_signal(signal.SIGSTOP)
        running.stopped.append(process)


async def drop_link(running: Deployment, rank: RankProcess) -> None:
    """Reset the rank's connection to the router."""
    if not running.proxy.drop(rank.pid):
        raise LookupError(f"rank {rank.rank} of {rank.group} has no link through the proxy")


async def half_open(running: Deployment, rank: RankProcess) -> None:
    """Drop all data on the rank's connection, without an error on either side."""
    if not running.proxy.freeze(rank.pid):
        raise LookupError(f"rank {rank.rank} of {rank.group} has no link through the proxy")


async def kill_controller(running: Deployment, rank: RankProcess) -> None:
    """Kill Ray Serve's controller, which Ray restarts; no token passes through it."""
    del rank
    running.controller().send_signal(signal.SIGKILL)
    await asyncio.sleep(0)


FAULTS = {
    fault.name: fault
    for fault in (
        RealFault("kill-core", "kill -9 of a rank's engine core", kill_core),
        RealFault("kill-actor", "kill -9 of a rank's Serve replica", kill_actor),
        RealFault("stop-rank", "SIGSTOP of a whole rank", stop_rank),
        RealFault("stop-core", "SIGSTOP of a rank's engine", stop_core),
        RealFault("drop-link", "a rank's link reset", drop_link, restarts=False),
        RealFault("half-open", "a rank's link half open", half_open, restarts=False),
        RealFault(
            "kill-controller", "kill -9 of Serve's controller", kill_controller, False, False
        ),
    )
}

"""The two ways from blue to green: beside each other, or one after the other."""

import argparse
import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from tests.bluegreen.system import System
from tests.bluegreen.traffic import Traffic

_SHARE = 3
"""One third of the requests before green comes, one third after blue is gone."""


class Table(Protocol):
    """Where the steps are told."""

    def event(self, text: str) -> None:
        """Tell one."""
        ...

    async def row(self) -> None:
        """Tell how things are."""
        ...


async def change(
    system: System, traffic: Traffic, table: Table, options: argparse.Namespace
) -> None:
    """Bring green, hand over, remove blue.

    Raises:
        RuntimeError: a step failed.
    """
    system.say = table.event
    part = options.requests // _SHARE
    await until(lambda: traffic.done >= part)
    table.event("deploying green")
    await system.deploy("green", *options.green)
    await system.until_ready("green", options.groups)
    await table.row()
    table.event("moe-serving switch --from blue --to green")
    code = await system.command("switch", "--from", "blue", "--to", "green", *_routers(system))
    if code:
        raise RuntimeError("the switch failed")
    await table.row()
    table.event("deleting blue")
    await system.delete("blue")
    await table.row()
    goal = max(options.requests, traffic.done + part)
    await until(lambda: traffic.done >= goal)


async def replace(
    system: System, traffic: Traffic, table: Table, options: argparse.Namespace
) -> None:
    """Drain and remove blue, then bring green; requests park meanwhile.

    Raises:
        RuntimeError: a step failed.
    """
    system.say = table.event
    part = options.requests // _SHARE
    await until(lambda: traffic.done >= part)
    parked = await system.parked()
    began = time.monotonic()
    for group in await system.group_ids("blue"):
        table.event(f"moe-serving drain {group}")
        # Ends with 1 if some were not finished: these continue in green.
        await system.command("drain", group, "--timeout", f"{options.drain:g}", *_routers(system))
    table.event("deleting blue")
    await system.delete("blue")
    gone = time.monotonic()
    await table.row()
    table.event("deploying green")
    await system.deploy("green", *options.green)
    await system.until_ready("green", options.groups)
    table.event(
        f"green is ready: no group was for {time.monotonic() - began:.1f} s (blue drained and gone "
        f"{gone - began:.1f} s, green up {time.monotonic() - gone:.1f} s); "
        f"{await system.parked() - parked} requests were parked"
    )
    await table.row()
    goal = max(options.requests, traffic.done + part)
    await until(lambda: traffic.done >= goal)


async def until(condition: Callable[[], bool], timeout: float = 600.0) -> None:
    """Wait for it.

    Raises:
        TimeoutError: it did not come.
    """
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  bounded above
            await asyncio.sleep(0.1)


def _routers(system: System) -> list[str]:
    return [word for place in system.places for word in ("--router", place.grpc)]

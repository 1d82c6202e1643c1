"""Two ways to replace blue with green: both at the same time, or one after the other."""

import argparse
import time
from typing import Protocol

from tests.bluegreen.system import System
from tests.bluegreen.traffic import Traffic
from tests.support.waiting import eventually

_SHARE = 3
"""A third of the requests before green is deployed, a third after blue is deleted."""


class Table(Protocol):
    """Receives the progress of the steps."""

    def event(self, text: str) -> None:
        """Add a line about a step."""
        ...

    async def row(self) -> None:
        """Add a row with the current state."""
        ...


async def change(
    system: System, traffic: Traffic, table: Table, options: argparse.Namespace
) -> None:
    """Deploy green, switch the traffic, delete blue.

    Raises:
        RuntimeError: A step failed.
    """
    system.say = table.event
    part = options.requests // _SHARE
    await eventually(lambda: traffic.done >= part, timeout=600)
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
    await eventually(lambda: traffic.done >= goal, timeout=600)


async def replace(
    system: System, traffic: Traffic, table: Table, options: argparse.Namespace
) -> None:
    """Drain and delete blue, then deploy green; in between, requests are parked.

    Raises:
        RuntimeError: A step failed.
    """
    system.say = table.event
    part = options.requests // _SHARE
    await eventually(lambda: traffic.done >= part, timeout=600)
    parked = await system.parked()
    began = time.monotonic()
    for group in await system.group_ids("blue"):
        table.event(f"moe-serving drain {group}")
        # Exit code 1: some requests did not finish and continue in green.
        await system.command(
            "drain", group, "--drain-timeout", f"{options.drain:g}", *_routers(system)
        )
    table.event("deleting blue")
    await system.delete("blue")
    deleted_at = time.monotonic()
    await table.row()
    table.event("deploying green")
    await system.deploy("green", *options.green)
    await system.until_ready("green", options.groups)
    table.event(
        f"green is ready: no group for {time.monotonic() - began:.1f} s (blue drained and gone "
        f"{deleted_at - began:.1f} s, green up {time.monotonic() - deleted_at:.1f} s); "
        f"{await system.parked() - parked} requests were parked"
    )
    await table.row()
    goal = max(options.requests, traffic.done + part)
    await eventually(lambda: traffic.done >= goal, timeout=600)


def _routers(system: System) -> list[str]:
    return [word for place in system.places for word in ("--grpc-address", place.grpc)]

"""Replace a Ray Serve app with another one under load, on real engines, and print the progress.

    make blue-green
    make blue-green ARGS=--no-spare
    python -m tests.bluegreen.run --requests 500 --clients 8

Two routers serve pocket-r1 on CPU. Green is deployed next to blue with different settings,
``moe-serving switch`` moves the traffic, and blue is deleted. With ``--no-spare``, blue is drained
and deleted first, as on clusters without GPUs for both: requests are parked until green is ready.
Each text is compared with that of an undisturbed run. The exit code is 1 if a request was lost.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from serving.flags.parser import FlagParser
from serving.flags.values import AMOUNT, COUNT
from tests.bluegreen.steps import change, replace
from tests.bluegreen.system import System, started
from tests.bluegreen.traffic import Traffic, connected

_HEAD = ("time s", "groups (app epoch state, at each router)", "done", "lost", "running", "gap s")
_WIDTHS = (7, 58, 6, 5, 8, 7)
_EVERY = 10.0
"""Seconds between rows."""


class Table:
    """Prints rows: the groups, and the requests since the last row."""

    def __init__(self, system: System, traffic: Traffic) -> None:
        self._system = system
        self._traffic = traffic
        self._began = self._last = time.monotonic()
        self.longest = 0.0
        """Longest gap between two tokens of a stream, in seconds."""

    def head(self) -> None:
        """Print the column names."""
        say(line(_HEAD))

    def event(self, text: str) -> None:
        """Print a line about a step."""
        say(f"{time.monotonic() - self._began:7.1f}  -- {text}")

    async def row(self) -> None:
        """Print a row."""
        now = time.monotonic()
        gap = self._traffic.longest_gap(self._last)
        self._last = now
        self.longest = max(self.longest, gap)
        traffic = self._traffic
        cells = (
            f"{now - self._began:.1f}",
            await self._groups(),
            str(traffic.done),
            str(len(traffic.lost)),
            str(len(traffic.running)),
            f"{gap:.2f}",
        )
        say(line(cells))

    async def follow(self) -> None:
        """Print a row every 10 seconds until cancelled."""
        while True:
            await self.row()
            await asyncio.sleep(_EVERY)

    async def _groups(self) -> str:
        seen: dict[str, list[str]] = {}
        for number, place in enumerate(self._system.places):
            for group in await place.groups():
                name = f"{group['app']} {group['epoch'][:6]}"
                seen.setdefault(name, ["-"] * len(self._system.places))[number] = group["state"]
        shown = sorted(seen.items())
        return ", ".join(f"{name} {'/'.join(dict.fromkeys(states))}" for name, states in shown)


async def play(options: argparse.Namespace) -> bool:
    """Run the test; return whether no request was lost."""
    with tempfile.TemporaryDirectory(prefix="moe-bluegreen-") as name:
        folder = Path(name)
        say("starting blue and two routers")
        async with (
            started(folder, "blue", options.groups, tuple(options.set), say) as system,
            connected(system.places) as lines,
        ):
            traffic = Traffic(lines, options.prompts, options.tokens)
            await traffic.learn()
            table = Table(system, traffic)
            table.head()
            async with under_load(traffic, options.clients, table):
                await (replace if options.no_spare else change)(system, traffic, table, options)
            await table.row()
    say(
        "",
        f"{traffic.done} requests with the undisturbed text, {len(traffic.lost)} lost, "
        f"longest gap between tokens {table.longest:.2f} s, longest wait for the first "
        f"{traffic.longest_wait:.2f} s",
        *(f"lost: {reason}" for reason in traffic.lost[:5]),
    )
    return not traffic.lost and traffic.done >= options.requests


@contextlib.asynccontextmanager
async def under_load(traffic: Traffic, clients: int, table: Table) -> AsyncIterator[None]:
    """Run the streams and print rows; at the end the last streams finish."""
    stop = asyncio.Event()
    flow = asyncio.create_task(traffic.flow(clients, stop))
    rows = asyncio.create_task(table.follow())
    try:
        yield
    finally:
        stop.set()
        rows.cancel()
        await asyncio.wait([flow, rows])
    flow.result()


def line(cells: tuple[str, ...]) -> str:
    """Return the cells as a row of the table."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def say(*lines: str) -> None:
    """Print lines and flush."""
    sys.stdout.writelines(f"{text}\n" for text in lines)
    sys.stdout.flush()


def main() -> int:
    """Run the command line."""
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--requests", type=COUNT, default=600, help="requests to complete at least (default: 600)"
    )
    parser.add_argument("--clients", type=COUNT, default=8, help="concurrent streams (default: 8)")
    parser.add_argument("--prompts", type=COUNT, default=40, help="different prompts (default: 40)")
    parser.add_argument(
        "--tokens", type=COUNT, default=64, help="tokens of an answer (default: 64)"
    )
    parser.add_argument("--groups", type=COUNT, default=1, help="groups of each app (default: 1)")
    parser.add_argument(
        "--set", action="append", default=[], help="setting of both apps, NAME=VALUE; repeatable"
    )
    parser.add_argument(
        "--green",
        action="append",
        default=["engine.max_num_seqs=48"],
        help="setting of green alone, NAME=VALUE; repeatable (default: engine.max_num_seqs=48)",
    )
    parser.add_argument(
        "--no-spare",
        action="store_true",
        help="delete blue before green is deployed, for clusters without room for both",
    )
    parser.add_argument(
        "--drain",
        type=AMOUNT,
        default=30.0,
        help="drain timeout of blue with --no-spare, seconds (default: 30)",
    )
    options = parser.parse_args()
    # As with Ctrl-C: all started processes are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return 0 if asyncio.run(play(options)) else 1


if __name__ == "__main__":
    sys.exit(main())

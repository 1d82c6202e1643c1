"""The node rows, in a separate process, which moves permanently into another network namespace.

python -m tests.faults.real.node_run --faults kill-gcs,lose-node,cut-cable
"""

import argparse
import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path

from serving.flags.parser import FlagParser
from serving.flags.values import COUNT
from tests.faults.real import nodes
from tests.faults.real.node_rows import NODE_ROWS
from tests.faults.real.rows import undisturbed
from tests.faults.real.system import START
from tests.faults.real.table import say, say_row, to_json

GROUPS = 2


def play(options: argparse.Namespace) -> None:
    """Start the nodes and run the rows; append each row to the file when it is done."""
    what = "rank" if options.spread else "group"
    say(f"starting {GROUPS} x {options.ranks} ranks, a {what} a node, Ray's head on its own")
    began = time.monotonic()
    sets = tuple(options.set)
    with nodes.on_nodes(GROUPS, options.ranks, sets, spread=options.spread) as running:
        asyncio.run(_rows(running, options, began))


async def _rows(running: nodes.OnNodes, options: argparse.Namespace, began: float) -> None:
    keeping = asyncio.create_task(running.keep())
    try:
        await running.until_whole(START)
        say(f"ready after {time.monotonic() - began:.0f} s; {options.requests} streams a row")
        reference, row = await undisturbed(running, options.requests, options.tokens)
        with options.rows.open("a", encoding="utf-8") as out:
            for name in (None, *options.faults):
                if name is not None:
                    row = await NODE_ROWS[name](running, reference, options.tokens)
                say_row(row)
                out.write(to_json(row) + "\n")
                out.flush()
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


def main() -> int:
    """Read the command line and run."""
    parser = FlagParser(description=__doc__)
    parser.add_argument(
        "--faults", type=lambda text: text.split(","), default=list(NODE_ROWS), metavar="NAMES"
    )
    parser.add_argument("--ranks", type=COUNT, default=2)
    parser.add_argument("--requests", type=COUNT, default=32)
    parser.add_argument("--tokens", type=COUNT, default=400)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--spread", action="store_true", help="a rank a node, not a group a node")
    parser.add_argument("--rows", type=Path, default=Path("/dev/null"), help="JSON lines go here")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    play(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

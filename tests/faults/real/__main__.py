"""Kill ranks of the real thing under traffic and print what survived.

    make faults
    python -m tests.faults.real --groups 2,1 --faults kill-core,drop-link --requests 32

Exits 1 if any stream was lost or any text differs from the undisturbed run.
"""

import argparse
import asyncio
import signal
import sys
import time

from tests.faults.real.deployment import deployed
from tests.faults.real.router_rows import ROUTER_ROWS
from tests.faults.real.rows import Row, disturbed, undisturbed
from tests.faults.real.streams import KINDS
from tests.faults.real.strikes import FAULTS

ALL = (*FAULTS, *ROUTER_ROWS)
_ONE_GROUP = ("kill-core", "kill-actor")
_HEAD = ("groups", "fault", "completed", "text equal", "on struck", "longest gap s", "recovered s")


async def play(options: argparse.Namespace) -> list[Row]:
    """Start each system in turn and run its faults."""
    rows = []
    for groups in options.groups:
        names = options.faults or (ALL if groups > 1 else _ONE_GROUP)
        say(f"starting {groups} x {options.ranks} ranks")
        began = time.monotonic()
        async with deployed(groups, options.ranks, tuple(options.set)) as running:
            say(f"ready after {time.monotonic() - began:.0f} s; {options.requests} streams a row")
            reference, row = await undisturbed(
                running, options.requests, options.tokens, tuple(options.kinds)
            )
            rows.append(row)
            say(line(row))
            for name in names:
                if name in ROUTER_ROWS:
                    row = await ROUTER_ROWS[name](running, reference, options.tokens)
                else:
                    row = await disturbed(running, FAULTS[name], reference, options.tokens)
                rows.append(row)
                say(line(row), *(f"  {text}" for text in (row.note, *row.trouble) if text))
    return rows


def line(row: Row) -> str:
    """Return a row as a line of the table."""
    recovered = "-" if row.recovered is None else f"{row.recovered:.1f}"
    cells = (
        str(row.groups),
        row.fault,
        f"{row.completed}/{row.streams}",
        f"{row.equal}/{row.streams}",
        str(row.resumed_on),
        f"{row.longest_gap:.2f}",
        recovered,
    )
    return _line(cells)


def _line(cells: tuple[str, ...]) -> str:
    widths = (6, 36, 9, 10, 9, 13, 11)
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def say(*lines: str) -> None:
    """Write lines for people, at once."""
    sys.stdout.writelines(f"{text}\n" for text in lines)
    sys.stdout.flush()


def main() -> int:
    """Read the command line, run, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    numbers = {"type": lambda text: [int(part) for part in text.split(",")], "default": [2, 1]}
    names = {"type": lambda text: text.split(","), "default": []}
    parser.add_argument("--groups", **numbers, help="systems to try, in turn (default 2,1)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks in a group (default 2)")
    parser.add_argument("--faults", **names, help=f"of {', '.join(ALL)} (default: all that fit)")
    parser.add_argument(
        "--kinds", **names, help=f"of requests: {', '.join(KINDS)} (default: all in turn)"
    )
    parser.add_argument("--requests", type=int, default=32, help="streams a row (default 32)")
    parser.add_argument("--tokens", type=int, default=400, help="tokens a stream (default 400)")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, as for up")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(ALL):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    options.kinds = options.kinds or list(KINDS)
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    # As Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows = asyncio.run(play(options))
    say("", _line(_HEAD), *map(line, rows), "")
    say(*(f"{row.groups} groups, {row.fault}: {row.note}" for row in rows if row.note))
    bad = [row for row in rows if not row.good]
    say("", f"{len(bad)} of {len(rows)} rows lost something" if bad else "nothing was lost")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

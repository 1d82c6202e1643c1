"""Inject faults into a real system under traffic and print the effect of each on the streams.

    make faults
    python -m tests.faults.real --groups 2,1 --faults kill-core,drop-link --requests 32

Exits with 1 if a stream was lost or a text differs from the undisturbed run.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from serving.flags.parser import FlagParser
from serving.flags.values import COUNT, CommaSeparated
from tests.faults.real import node_rows, nodes
from tests.faults.real.deployment import deployed
from tests.faults.real.node_rows import NODE_ROWS
from tests.faults.real.router_rows import ROUTER_ROWS
from tests.faults.real.rows import Row, disturbed, undisturbed
from tests.faults.real.streams import KINDS
from tests.faults.real.strikes import FAULTS
from tests.faults.real.table import from_json, head, line, say, say_row

HERE = (*FAULTS, *ROUTER_ROWS)
ALL = (*HERE, *NODE_ROWS)
_KILLS = ("kill-core", "kill-actor")
_NODES_STOP = 60.0
"""Timeout for the nodes to stop, seconds."""


async def play(options: argparse.Namespace) -> list[Row]:
    """Start each system in turn and run its rows."""
    rows = []
    for groups in options.groups:
        names = [name for name in options.faults if name in HERE]
        if not options.faults:
            names = list(HERE if groups > 1 else _KILLS)
        if not names:
            continue
        say(f"starting {groups} x {options.ranks} ranks")
        began = time.monotonic()
        async with deployed(groups, options.ranks, tuple(options.set)) as running:
            say(f"ready after {time.monotonic() - began:.0f} s; {options.requests} streams a row")
            for kinds, chosen in rounds(options.kinds, names):
                reference, row = await undisturbed(running, options.requests, options.tokens, kinds)
                rows.append(row)
                say_row(row)
                for name in chosen:
                    if name in ROUTER_ROWS:
                        row = await ROUTER_ROWS[name](running, reference, options.tokens)
                    else:
                        row = await disturbed(running, FAULTS[name], reference, options.tokens)
                    rows.append(row)
                    say_row(row)
    return rows


def rounds(kinds: list[str], names: list[str]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Return pairs of request kinds and faults; kills with only greedy requests come first."""
    if kinds:
        return [(tuple(kinds), names)]
    greedy = [name for name in names if name in _KILLS]
    return [(("greedy",), greedy)] * bool(greedy) + [(tuple(KINDS), names)]


def play_nodes(options: argparse.Namespace) -> tuple[list[Row], list[str], int]:
    """Run the node rows in a separate process.

    Returns:
        The rows, what was not run and why, and the exit code of that process.
    """
    wanted = [name for name in options.faults or NODE_ROWS if name in NODE_ROWS]
    reasons = {name: nodes.why_not() or node_rows.why_not(name) for name in wanted}
    skipped = [f"{name}: not run: {reason}" for name, reason in reasons.items() if reason]
    names = [name for name, reason in reasons.items() if not reason]
    if not names:
        return [], skipped, 0
    with tempfile.TemporaryDirectory(prefix="moe-serving-faults-") as folder:
        file = Path(folder) / "rows"
        words = [f"--{name}={getattr(options, name)}" for name in ("ranks", "requests", "tokens")]
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.faults.real.node_run", "--faults", ",".join(names),
                "--rows", str(file), *words, *(f"--set={item}" for item in options.set),
            ],
            # It starts processes while calls are open; these processes use no gRPC.
            env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
            # Ctrl-C reaches it through this process, once.
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait(_NODES_STOP)
            raise
        written = file.read_text("utf-8").splitlines() if file.exists() else []
    if code:
        skipped.append(f"the process of {', '.join(names)} ended with {code}")
    return [from_json(text) for text in written], skipped, code


def main() -> int:
    """Read the command line, run, print the table."""
    parser = FlagParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    numbers = {"type": CommaSeparated(COUNT), "default": [2, 1]}
    names = {"type": lambda text: text.split(","), "default": []}
    parser.add_argument("--groups", **numbers, help="systems to try, in turn (default 2,1)")
    parser.add_argument("--ranks", type=COUNT, default=2, help="ranks in a group (default 2)")
    parser.add_argument(
        "--faults",
        **names,
        help=f"of {', '.join(ALL)} (default: all that fit);\n"
        f"{', '.join(NODE_ROWS)} need root: they get a system of 2 groups on 3 Ray nodes",
    )
    parser.add_argument(
        "--kinds",
        **names,
        help=f"of requests: {', '.join(KINDS)}\n"
        "(default: all in turn; kills with greedy ones alone, too)",
    )
    parser.add_argument("--requests", type=COUNT, default=32, help="streams a row (default 32)")
    parser.add_argument("--tokens", type=COUNT, default=400, help="tokens a stream (default 400)")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, as for up")
    options = parser.parse_args()
    if unknown := set(options.faults) - set(ALL):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    # SIGTERM stops everything that was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows = asyncio.run(play(options))
    more, skipped, code = play_nodes(options)
    rows += more
    say("", head(), *map(line, rows), "")
    say(*(f"{row.groups} groups, {row.fault}: {row.note}" for row in rows if row.note), *skipped)
    bad = [row for row in rows if not row.good]
    say("", f"{len(bad)} of {len(rows)} rows lost something" if bad or code else "nothing was lost")
    return 1 if bad or code else 0


if __name__ == "__main__":
    sys.exit(main())

"""The ledger while router and database are killed: `python -m tests.ledger.run --requests 100000`.

Compares the ledger with the clients' own counts; the exit code is 1 if they differ. Each router
runs in one process with its fake rank; the clients run in another.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from serving.flags.parser import FlagParser
from serving.settings import LedgerSettings
from tests.ledger.history import Comparison, Fleet, History, compare
from tests.support.postgres import PostgresServer


async def run(
    database: str,
    routers: int,
    requests: int,
    kills: int,
    concurrency: int,
    seed: int,
    folder: Path,
) -> bool:
    """Run the history and print its result; return whether the ledger is exact."""
    server = PostgresServer() if database == "postgresql" else None
    if server is not None:
        server.start()
    ledgers = [
        {"directory": str(folder / f"router-{number}"), "flush_interval": 0.2}
        | ({} if server is None else {"database_url": server.url()})
        for number in range(routers)
    ]
    fleets = [Fleet(ledger) for ledger in ledgers]
    begun = time.monotonic()
    try:
        for fleet in fleets:
            await fleet.start()
        history = History(fleets, seed)

        async def restart_database():
            await asyncio.to_thread(server.kill)
            await history.reach(len(history.finished) + requests // 50)
            await asyncio.to_thread(server.start)

        events = []
        for number in range(kills):
            at = (number + 1) * requests // (kills + 1)
            events.append((at, fleets[number % routers].kill))
            if server is not None:
                events.append((at + requests // 100, restart_database))
        await history.run(requests, concurrency, events)
        for fleet in fleets:
            await fleet.stop()
        settings = [LedgerSettings(**ledger) for ledger in ledgers]
        # Routers share one database, or have one each.
        found = compare(settings if server is None else settings[:1], history.finished)
    finally:
        for fleet in fleets:
            await fleet.close()
        if server is not None:
            server.close()
    left = sum(
        file.stat().st_size
        for ledger in ledgers
        for file in (Path(ledger["directory"]) / "spool").glob("*.*")
    )
    show(found, history, kills if server else 0, left, time.monotonic() - begun)
    return found.exact and not left


def show(found: Comparison, history: History, kills: int, left: int, seconds: float) -> None:
    """Print the comparison."""
    for name, value in (
        ("finished for a client", found.finished),
        ("routers killed", sum(fleet.kills for fleet in history.fleets)),
        ("PostgreSQL killed", kills),
        ("attempts lost to them", history.lost),
        ("recorded, not finished for a client", found.unseen),
        ("missing in the ledger", len(found.missing)),
        ("with other counts", len(found.different)),
        ("recorded more than once", len(found.repeated)),
        ("bytes left in the spool", left),
        ("seconds", round(seconds)),
    ):
        print(f"{name:38}{value:>16,}")
    for kind, client, ledger in zip(
        ("prompt tokens", "cached tokens", "output tokens"),
        found.clients,
        found.ledger,
        strict=True,
    ):
        print(f"{kind + ', clients and ledger':38}{client:>16,}{ledger:>16,}")
    print("exact" if found.exact and not left else "NOT EXACT")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    import uvloop

    parser = FlagParser(prog="python -m tests.ledger.run", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="Requests to finish.")
    parser.add_argument(
        "--database",
        choices=("postgresql", "sqlite"),
        default="postgresql",
        help="One PostgreSQL server for all routers, or an SQLite file for each.",
    )
    parser.add_argument("--routers", type=int, default=2, help="Routers.")
    parser.add_argument(
        "--kills", type=int, default=5, help="Kills of a router, and of PostgreSQL."
    )
    parser.add_argument("--concurrency", type=int, default=32, help="Concurrent requests.")
    parser.add_argument("--seed", type=int, default=1, help="Seed for prompts and lengths.")
    flags = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        exact = runner.run(
            run(
                flags.database,
                flags.routers,
                flags.requests,
                flags.kills,
                flags.concurrency,
                flags.seed,
                Path(folder),
            )
        )
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())

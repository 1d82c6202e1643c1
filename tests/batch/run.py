"""Batches while routers and PostgreSQL are killed: `python -m tests.batch.run --runs 20`.

Two routers, each with a fake rank in its process, run the same batch from one PostgreSQL database
and one folder. At random times, a router or the database is killed with SIGKILL and restarted.
Prints a line for each run; the exit code is 1 if a line of an input file is missing from the
results or appears twice.
"""

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from serving.batch.records import ENDED
from serving.flags.parser import FlagParser
from tests.ledger.history import Fleet
from tests.support.batches import CHATS
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE


class BatchFleet(Fleet):
    """A router with batches that can be killed and restarted."""

    def __init__(self, batch):
        super().__init__({})
        self._groups["batch"] = batch


def input_file(lines: int) -> bytes:
    """Return an input file; the ids are 0, 1, …"""
    return b"\n".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": CHATS,
                "body": {
                    "messages": [{"role": "user", "content": f"{number}+1"}],
                    "max_tokens": 4 + number % 20,
                    "ignore_eos": True,
                },
            }
        ).encode()
        for number in range(lines)
    )


async def run(lines: int, kills: int, chance: random.Random, fleets, server) -> bool:
    """Run one batch under kills and print a line; return whether every line is answered once."""
    import httpx

    begun = time.monotonic()
    async with httpx.AsyncClient(timeout=PATIENCE) as http:

        async def call(method, path, **arguments):
            # Any router can be used, and the one that is called may have been killed.
            while True:
                address = chance.choice(fleets).addresses["rest"]
                with contextlib.suppress(httpx.HTTPError):
                    answer = await http.request(method, address + path, **arguments)
                    if answer.status_code == 200:
                        return answer
                await asyncio.sleep(0.05)

        form = {"files": {"file": input_file(lines)}, "data": {"purpose": "batch"}}
        file = (await call("POST", "/v1/files", **form)).json()["id"]
        body = {"input_file_id": file, "endpoint": CHATS, "completion_window": "1h"}
        batch = (await call("POST", "/v1/batches", json=body)).json()
        done, killed = 0, []
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.1, 1.5))
            victim = chance.choice([*fleets, server])
            done = (await call("GET", f"/v1/batches/{batch['id']}")).json()["request_counts"]
            if victim is server:
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(chance.uniform(0.0, 1.0))
                await asyncio.to_thread(server.start)
            else:
                await victim.kill()
            name = "postgres" if victim is server else f"router{fleets.index(victim)}"
            killed.append(f"{name}@{done['completed']}")
        while batch["status"] not in ENDED:
            await asyncio.sleep(0.2)
            batch = (await call("GET", f"/v1/batches/{batch['id']}")).json()
        found = Counter()
        for name in ("output_file_id", "error_file_id"):
            if batch[name] is not None:
                content = (await call("GET", f"/v1/files/{batch[name]}/content")).text
                found.update(json.loads(each)["custom_id"] for each in content.splitlines())
    counts = batch["request_counts"]
    exact = found == Counter(map(str, range(lines))) and counts["completed"] == lines
    print(
        f"{'exact' if exact else 'NOT EXACT':10} {batch['status']}, {counts}, "
        f"{time.monotonic() - begun:.0f} s, killed: {', '.join(killed)}",
        flush=True,
    )
    return exact


async def run_all(runs: int, lines: int, kills: int, seed: int, folder: Path) -> bool:
    """Run all batches; return whether all are exact."""
    server = PostgresServer()
    server.start()
    batch = {
        "directory": str(folder),
        "database_url": server.url(),
        "lease": 3.0,
        "interval": 0.5,
        "max_running_lines": 4,
    }
    fleets = [BatchFleet(batch), BatchFleet(batch)]
    chance = random.Random(seed)
    try:
        for fleet in fleets:
            await fleet.start()
        return all([await run(lines, kills, chance, fleets, server) for _ in range(runs)])
    finally:
        for fleet in fleets:
            await fleet.close()
        server.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    import uvloop

    parser = FlagParser(prog="python -m tests.batch.run", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="Batches.")
    parser.add_argument("--lines", type=int, default=2000, help="Lines of a batch.")
    parser.add_argument("--kills", type=int, default=3, help="Kills during a batch.")
    parser.add_argument("--seed", type=int, default=1, help="Seed of the kills.")
    flags = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        exact = runner.run(run_all(flags.runs, flags.lines, flags.kills, flags.seed, Path(folder)))
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())

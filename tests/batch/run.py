"""Batches while everything that they need is killed: `python -m tests.batch.run --runs 20`.

Two routers run the same batch on two fake ranks, with one PostgreSQL database and one S3-compatible
object storage, each in a separate process. At random moments one of the six gets SIGKILL and is
started again. Prints a line for each run; the exit code is 1 if a line of an input file is missing
in the results or is there twice.
"""

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from serving.batch.records import ENDED
from serving.flags.parser import FlagParser
from tests.batch.stepping_ranks import READY
from tests.ledger.history import Fleet
from tests.support.batches import CHATS
from tests.support.object_storage import CREDENTIALS, ObjectStorageServer
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE, eventually

_COSTS = "0.005", "0.0", "0.0"
"""Seconds of a step: fixed, for each sequence, for each prompt token."""
_END = 1200.0
"""Timeout for the end of a batch, seconds."""
_DOWN = 1.0
"""Maximum time for which something that was killed stays down, seconds."""


class RankProcess:
    """A group of one fake rank, connected to all routers."""

    def __init__(self, group: str, routers: Sequence[str], folder: Path) -> None:
        self._words = [str(folder / f"{group}.yaml"), group, *_COSTS]
        settings = {
            "engine": {"kind": "fake", "max_model_len": 512},
            "group": {"data_parallel": 1},
            "link": {"routers": list(routers), "load_interval": 0.1, "backoff_initial": 0.05},
            "telemetry": {"log_level": "error"},
        }
        Path(self._words[0]).write_text(yaml.safe_dump(settings), "utf-8")
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it; it joins the routers in the background."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.batch.stepping_ranks", *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().decode().strip() == READY

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    close = kill


@dataclass
class Rig:
    """Everything that a batch needs."""

    routers: list[Fleet]
    ranks: list[RankProcess]
    postgres: PostgresServer
    storage: ObjectStorageServer
    chance: random.Random

    async def kill(self) -> str:
        """Kill something and start it again; return its name."""
        kind = self.chance.choice(("router", "rank", "postgres", "storage"))
        number = self.chance.randrange(2)
        if kind == "router":
            await self.routers[number].kill()
            return f"router{number}"
        victim = {"rank": self.ranks[number], "postgres": self.postgres, "storage": self.storage}
        await asyncio.to_thread(victim[kind].kill)
        await asyncio.sleep(self.chance.uniform(0.0, _DOWN))
        await asyncio.to_thread(victim[kind].start)
        return f"rank{number}" if kind == "rank" else kind


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


async def run(lines: int, kills: int, rig: Rig) -> bool:
    """Run one batch under kills and print a line; return whether every line is answered once."""
    import httpx

    begun = time.monotonic()
    async with httpx.AsyncClient(timeout=PATIENCE) as http:

        async def call(method, path, **arguments):
            # Any router will do, and the one that is asked may be dead.
            while True:
                address = rig.chance.choice(rig.routers).addresses["rest"]
                with contextlib.suppress(httpx.HTTPError):
                    answer = await http.request(method, address + path, **arguments)
                    if answer.status_code == 200:
                        return answer
                await asyncio.sleep(0.05)

        async def look():
            return (await call("GET", f"/v1/batches/{batch['id']}")).json()

        async def ended():
            found = await look()
            return found if found["status"] in ENDED else None

        form = {"files": {"file": input_file(lines)}, "data": {"purpose": "batch"}}
        file = (await call("POST", "/v1/files", **form)).json()["id"]
        body = {"input_file_id": file, "endpoint": CHATS, "completion_window": "1h"}
        batch = (await call("POST", "/v1/batches", json=body)).json()
        killed = []
        for _ in range(kills):
            await asyncio.sleep(rig.chance.uniform(0.1, 1.5))
            found = await look()
            name = await rig.kill()
            killed.append(f"{name}@{found['request_counts']['completed']}/{found['status']}")
        batch = await eventually(ended, f"the end of {batch['id']}", timeout=_END, interval=0.2)
        answered = Counter()
        for name in ("output_file_id", "error_file_id"):
            if batch[name] is not None:
                content = (await call("GET", f"/v1/files/{batch[name]}/content")).text
                answered.update(json.loads(each)["custom_id"] for each in content.splitlines())
    counted = batch["request_counts"]
    exact = answered == Counter(map(str, range(lines))) and counted["completed"] == lines
    print(
        f"{'exact' if exact else 'NOT EXACT':10} {batch['status']}, {counted}, "
        f"{time.monotonic() - begun:.0f} s, killed: {', '.join(killed)}",
        flush=True,
    )
    return exact


async def run_all(runs: int, lines: int, kills: int, seed: int, folder: Path) -> bool:
    """Run all batches; return whether all are exact."""
    os.environ.update(CREDENTIALS)
    async with contextlib.AsyncExitStack() as stack:
        postgres, storage = PostgresServer(), ObjectStorageServer()
        for server in (postgres, storage):
            server.start()
            stack.callback(server.close)
        batch = {
            "directory": str(folder),
            "database_url": postgres.url(),
            "storage_url": storage.create_bucket("moe-batches"),
            "storage_endpoint": storage.url,
            "lease": 3.0,
            "interval": 0.5,
            "max_running_lines": 16,
        }
        routers = [Fleet({}, ranks=0, batch=batch) for _ in range(2)]
        for router in routers:
            stack.push_async_callback(router.close)
            await router.start()
        joins = [router.addresses["join"] for router in routers]
        ranks = [RankProcess(f"g{number}", joins, folder) for number in range(2)]
        for rank in ranks:
            stack.callback(rank.close)
            rank.start()
        rig = Rig(routers, ranks, postgres, storage, random.Random(seed))
        return all([await run(lines, kills, rig) for _ in range(runs)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    import uvloop

    parser = FlagParser(prog="python -m tests.batch.run", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="Batches.")
    parser.add_argument("--lines", type=int, default=2000, help="Lines of a batch.")
    parser.add_argument("--kills", type=int, default=4, help="Kills during a batch.")
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

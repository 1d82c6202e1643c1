"""Clients of several routers race for one budget: `python -m tests.ledger.race`.

Each client retries a request that is rejected only because requests in flight have reserved the
rest of the budget. Prints the spending; the exit code is 1 if the budget is exceeded by the highest
price of a request or more, or if clients were rejected before it was used up.
"""

import asyncio
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp
from sqlalchemy import func, select

from serving.edge.auth.keys import digest_of
from serving.flags.parser import FlagParser
from serving.ledger.database import LedgerDatabase
from serving.ledger.schema import RESERVATIONS, SPENDING
from serving.settings import LedgerSettings
from tests.ledger.history import Fleet
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE

KEY = "moe-key-of-a-race"
TARIFF = "currency: USD\nmodels: {pocket-r1: {cached: 0, uncached: 0, output: 1}}"
TOKEN = 1000
"""Price of an output token in billionths."""


async def run(
    routers: int, requests: int, affordable: int, most: int, folder: Path, *, early: bool
) -> bool:
    """Start all requests at once, and print the result.

    Args:
        routers: Number of routers, which share a PostgreSQL database.
        requests: Number of concurrent requests.
        affordable: Number of requests that the budget covers.
        most: Maximum output tokens of each request, which it reserves.
        folder: An empty folder.
        early: Let requests end at a vowel or space, so that they use less than they reserve.
    """
    hard = affordable * most * TOKEN
    (folder / "tariff.yaml").write_text(TARIFF)
    (folder / "keys.yaml").write_text(
        f'keys: [{{id: racer, tenant: racers, hash: "{digest_of(KEY)}"}}]\n'
        f"tenants: {{racers: {{budgets: {{month: {{hard: {hard / 10**9:.9f}}}}}}}}}\n"
    )
    server = PostgresServer()
    server.start()
    ledgers = [
        {
            "directory": str(folder / f"router-{number}"),
            "database_url": server.url(),
            "tariff_file": str(folder / "tariff.yaml"),
            "flush_interval": 0.2,
            "budget_timeout": PATIENCE,
        }
        for number in range(routers)
    ]
    keys = {"keys_file": str(folder / "keys.yaml")}
    fleets = [Fleet(ledger, security=keys) for ledger in ledgers]
    try:
        for fleet in fleets:
            await fleet.start()
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as rest:
            outcomes = await asyncio.gather(
                *(_client(rest, fleets[at % routers], most, early) for at in range(requests))
            )
        for fleet in fleets:
            await fleet.stop()
        spent, held = await asyncio.to_thread(_sums, LedgerSettings(**ledgers[0]))
    finally:
        for fleet in fleets:
            await fleet.close()
        server.close()
    finished = [used for used, _ in outcomes if used is not None]
    for name, value in (
        ("requests at once", requests),
        ("refused while others held the rest", sum(refused for _, refused in outcomes)),
        ("finished", len(finished)),
        ("refused until the renewal", requests - len(finished)),
        ("budget, tokens", hard // TOKEN),
        ("spent, tokens", spent // TOKEN),
        ("used as clients count, tokens", sum(finished)),
        ("bound of an overshoot, tokens", most),
        ("still held, tokens", held // TOKEN),
    ):
        print(f"{name:38}{value:>12,}")
    within = hard <= spent < hard + most * TOKEN and held == 0
    exact = spent == sum(finished) * TOKEN
    print("exact and within the bound" if within and exact else "NOT EXACT OR OUT OF BOUND")
    return within and exact


async def _client(rest, fleet, most, early):
    """Return the tokens used (None: refused until the renewal), and the number of refusals."""
    refused = 0
    body = {
        "model": "pocket-r1",
        "messages": [{"role": "user", "content": "abc"}],
        "max_tokens": most,
        "ignore_eos": True,
        "seed": random.getrandbits(32),
        **({"stop": [" ", "a", "e", "i"]} if early else {}),
    }
    while True:
        url = f"{fleet.addresses['rest']}/v1/chat/completions"
        timeout = aiohttp.ClientTimeout(PATIENCE)
        async with rest.post(url, json=body, timeout=timeout) as response:
            if response.status == 200:
                return (await response.json())["usage"]["completion_tokens"], refused
            assert response.status == 402, await response.text()
            if float((await response.json())["error"]["retry_after"]) > 1:
                return None, refused
        refused += 1
        await asyncio.sleep(0.1)


def _sums(settings):
    database = LedgerDatabase(settings)
    with database.connect() as connection:
        found = [
            int(connection.scalar(select(func.coalesce(func.sum(column), 0))))
            for column in (SPENDING.c.amount, RESERVATIONS.c.amount)
        ]
    database.close()
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    import uvloop

    parser = FlagParser(prog="python -m tests.ledger.race", description=__doc__)
    parser.add_argument("--routers", type=int, default=2, help="Routers.")
    parser.add_argument("--requests", type=int, default=500, help="Concurrent requests.")
    parser.add_argument(
        "--affordable", type=int, default=100, help="Requests that the budget covers."
    )
    parser.add_argument("--most", type=int, default=100, help="Maximum output tokens per request.")
    parser.add_argument("--early", action="store_true", help="Use less than reserved.")
    flags = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        within = runner.run(
            run(
                flags.routers,
                flags.requests,
                flags.affordable,
                flags.most,
                Path(folder),
                early=flags.early,
            )
        )
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())

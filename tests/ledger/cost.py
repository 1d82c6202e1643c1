"""CPU time of a request with and without a ledger and budgets: `python -m tests.ledger.cost`.

Routers with different settings, each in one process with its fake rank, get the same requests in
alternating rounds. Prints the CPU time of a process per request, as a median over the rounds, and
the difference from the router without a ledger: the mean of its rounds just before and just after.
The first row compares that router with itself, which shows the error of the method.
"""

import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from serving.edge.auth.keys import digest_of
from serving.flags.parser import FlagParser
from tests.ledger.history import Fleet
from tests.support.postgres import PostgresServer
from tests.support.waiting import PATIENCE

KEY = "moe-key-of-a-measurement"
TARIFF = "currency: USD\nmodels: {pocket-r1: {cached: 1, uncached: 1, output: 1}}"
_ENTRY = f'keys: [{{id: key, tenant: tenant, hash: "{digest_of(KEY)}"}}]\n'
_BUDGET = "tenants: {tenant: {budgets: {month: {hard: 1000000}, day: {soft: 500000}}}}\n"
_BASE = "no ledger"
_TICKS = os.sysconf("SC_CLK_TCK")


def _fleets(folder: Path, server: PostgresServer) -> dict[str, Fleet]:
    (folder / "tariff.yaml").write_text(TARIFF)
    for name, text in (("plain", _ENTRY), ("budget", _ENTRY + _BUDGET)):
        (folder / f"{name}.yaml").write_text(text)

    def fleet(name, keys="plain", **ledger):
        if ledger.pop("on", True):
            ledger |= {
                "directory": str(folder / name),
                "tariff_file": str(folder / "tariff.yaml"),
                "budget_timeout": PATIENCE,
            }
        return Fleet(ledger, security={"keys_file": str(folder / f"{keys}.yaml")})

    shared = {"database_url": server.url()}
    return {
        _BASE: fleet("none", on=False),
        "ledger, SQLite": fleet("sqlite"),
        "ledger, PostgreSQL": fleet("postgres", **shared),
        "ledger and budgets, SQLite": fleet("budget-sqlite", "budget"),
        "ledger and budgets, PostgreSQL": fleet("budget-postgres", "budget", **shared),
    }


async def run(
    rounds: int, requests: int, concurrency: int, tokens: int, only: str, folder: Path
) -> None:
    """Measure, and print a table.

    Args:
        rounds: Rounds in which each router gets ``requests`` requests, after an uncounted one.
        requests: Requests per round.
        concurrency: Number of concurrent requests.
        tokens: Output tokens per request.
        only: Part of the names of the routers that are compared with the one without a ledger.
        folder: An empty folder.
    """
    server = PostgresServer()
    server.start()
    fleets = {
        name: fleet
        for name, fleet in _fleets(folder, server).items()
        if only in name or name == _BASE
    }
    base = fleets.pop(_BASE)
    measured: dict[str, list[tuple[float, float]]] = {_BASE: [], **{name: [] for name in fleets}}
    headers = {"authorization": f"Bearer {KEY}"}

    async def cost(fleet: Fleet) -> float:
        before = _cpu(fleet)
        await _round(rest, fleet, requests, concurrency, tokens)
        # Background writes are part of a request's cost.
        await asyncio.sleep(1.5)
        return (_cpu(fleet) - before) / requests * 1e6

    try:
        for fleet in (base, *fleets.values()):
            await fleet.start()
        async with aiohttp.ClientSession(headers=headers) as rest:
            for fleet in (base, *fleets.values()):
                await cost(fleet)
            for _ in range(rounds):
                before = await cost(base)
                for name, fleet in {_BASE: base, **fleets}.items():
                    found, after = await cost(fleet), await cost(base)
                    measured[name].append((found, (before + after) / 2))
                    before = after
    finally:
        for fleet in (base, *fleets.values()):
            await fleet.close()
        server.close()
    for name, pairs in measured.items():
        more = sorted(100 * (found / beside - 1) for found, beside in pairs)
        quarter = len(more) // 4
        print(
            f"{name:34}{statistics.median(found for found, _ in pairs):8.0f} us   "
            f"{statistics.median(more):+6.1f} % "
            f"(quartiles {more[quarter]:+.1f} to {more[-1 - quarter]:+.1f})"
        )


async def _round(rest, fleet, requests, concurrency, tokens):
    numbers = iter(range(requests))
    url = f"{fleet.addresses['rest']}/v1/chat/completions"
    body = {
        "model": "pocket-r1",
        "messages": [{"role": "user", "content": "abc"}],
        "max_tokens": tokens,
        "ignore_eos": True,
    }

    async def work():
        for _ in numbers:
            async with rest.post(url, json=body, raise_for_status=True) as response:
                await response.read()

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())


def _cpu(fleet):
    """Return the CPU time of a router's process, with its fake rank, seconds."""
    fields = Path(f"/proc/{fleet.addresses['pid']}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    import uvloop

    parser = FlagParser(prog="python -m tests.ledger.cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="Rounds.")
    parser.add_argument("--requests", type=int, default=400, help="Requests per round.")
    parser.add_argument("--concurrency", type=int, default=16, help="Concurrent requests.")
    parser.add_argument("--tokens", type=int, default=64, help="Output tokens per request.")
    parser.add_argument("--only", default="", help="Compare only routers with this in their name.")
    flags = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(
            run(
                flags.rounds,
                flags.requests,
                flags.concurrency,
                flags.tokens,
                flags.only,
                Path(folder),
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

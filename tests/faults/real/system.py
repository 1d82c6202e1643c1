"""What every row needs of a running system: its addresses, its groups, its ranks."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

START = 900.0
"""Seconds; a busy machine takes minutes to start four engines."""
_POLL = 0.2


@dataclass(frozen=True, slots=True)
class RankProcess:
    """A rank and what runs under it."""

    group: str
    rank: int
    pid: int
    """Of its Serve replica, as its node counts."""
    node: str
    """Address."""

    def tree(self) -> list[psutil.Process]:
        """Return the replica and all under it, the replica first."""
        replica = psutil.Process(self.pid)
        return [replica, *replica.children(recursive=True)]

    def named(self, word: str) -> psutil.Process:
        """Return the process whose title or command holds ``word``, such as EngineCore."""
        for process in self.tree()[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in process.name() or any(word in part for part in process.cmdline()):
                    return process
        raise LookupError(f"rank {self.rank} of {self.group} has no process {word}")


@dataclass(slots=True)
class System:
    """A running system."""

    groups: int
    rest: str
    grpc: str
    model: str

    async def fleet(self) -> list[dict[str, Any]]:
        """Return the groups as /fleet has them; none while the router does not answer."""
        try:
            async with httpx.AsyncClient(timeout=60) as client:
                answer = await client.get(f"{self.rest}/fleet")
                found: list[dict[str, Any]] = answer.json()["groups"]
        except (httpx.HTTPError, KeyError, ValueError):
            return []
        return found

    async def ready(self) -> dict[str, list[RankProcess]]:
        """Return the ready groups with their ranks."""
        return {
            group["group_id"]: [
                RankProcess(group["group_id"], rank["rank"], rank["pid"], rank["node"])
                for rank in group["ranks"]
            ]
            for group in await self.fleet()
            if group["state"] == "ready"
        }

    async def until_whole(self, timeout: float = START) -> float:
        """Wait until every group is ready; return the seconds that took.

        Raises:
            TimeoutError: some group did not come.
        """
        began = time.monotonic()
        async with asyncio.timeout(timeout):
            while len(await self.ready()) < self.groups:  # noqa: ASYNC110
                await asyncio.sleep(_POLL)
        return time.monotonic() - began

    def finish_stopped(self) -> None:
        """Kill what a strike has stopped and is still there; here none does."""

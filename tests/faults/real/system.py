"""A running system: its addresses, groups and ranks."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import httpx
import psutil

from serving.api.v1 import fleet_pb2, fleet_pb2_grpc

START = 900.0
"""Timeout of a start, seconds; a busy machine takes minutes to start four engines."""
_POLL = 0.2


@dataclass(frozen=True, slots=True)
class RankProcess:
    """A rank's processes."""

    group: str
    rank: int
    pid: int
    """Process id of its Serve replica, in its node's process namespace."""
    node: str
    """The node's address."""

    def tree(self) -> list[psutil.Process]:
        """Return the replica and its descendants, the replica first."""
        replica = psutil.Process(self.pid)
        return [replica, *replica.children(recursive=True)]

    def named(self, word: str) -> psutil.Process:
        """Return the process whose title or command contains ``word``, such as EngineCore."""
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
        """Return the groups from /fleet; an empty list while the router does not respond."""
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
        """Wait until every group is ready; return how long it took, in seconds.

        Raises:
            TimeoutError: a group is not ready after ``timeout`` seconds.
        """
        began = time.monotonic()
        async with asyncio.timeout(timeout):
            while len(await self.ready()) < self.groups:  # noqa: ASYNC110
                await asyncio.sleep(_POLL)
        return time.monotonic() - began

    @contextlib.asynccontextmanager
    async def cordoned(self, group: str) -> AsyncIterator[None]:
        """Cordon a group in the block; afterwards, wait until every group is ready."""
        async with grpc.aio.insecure_channel(self.grpc) as channel:
            stub = fleet_pb2_grpc.FleetServiceStub(channel)
            await stub.Cordon(fleet_pb2.CordonRequest(group_id=group))
            try:
                yield
            finally:
                await stub.Uncordon(fleet_pb2.UncordonRequest(group_id=group))
                await self.until_whole()

    def finish_stopped(self) -> None:
        """Kill processes that a fault has stopped; this system's faults stop none."""

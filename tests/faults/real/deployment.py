"""The real thing on this machine: ``moe-serving up`` with its own state folder and free ports."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.faults.real.link_proxy import LinkProxy

START, STOP = 900.0, 60.0
"""Seconds; a busy machine takes minutes to start four engines."""
WRITE_TIMEOUT = 10.0
"""Seconds, for clients that do not read; the default of a minute would only be waited for."""
_POLL = 0.2


@dataclass(frozen=True, slots=True)
class RankProcess:
    """A rank and what runs under it."""

    group: str
    rank: int
    pid: int
    """Of its Serve replica."""

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
class Deployment:
    """A running system."""

    groups: int
    rest: str
    grpc: str
    model: str
    proxy: LinkProxy
    state: dict[str, Any]
    stopped: list[psutil.Process] = field(default_factory=list)
    """Processes under SIGSTOP, to be killed at the end if they are still there."""

    async def fleet(self) -> list[dict[str, Any]]:
        """Return the groups as /fleet has them; none while the router does not answer."""
        try:
            async with httpx.AsyncClient(timeout=10) as client:
                answer = await client.get(f"{self.rest}/fleet")
                found: list[dict[str, Any]] = answer.json()["groups"]
        except (httpx.HTTPError, KeyError, ValueError):
            return []
        return found

    async def ready(self) -> dict[str, list[RankProcess]]:
        """Return the ready groups with their ranks."""
        return {
            group["group_id"]: [
                RankProcess(group["group_id"], rank["rank"], rank["pid"]) for rank in group["ranks"]
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

    def router_pid(self) -> int:
        """Return the router's process id."""
        up = psutil.Process(self.state["up"]["pid"])
        for child in up.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "router" in child.cmdline():
                    return child.pid
        raise LookupError("the router does not run")

    def controller(self) -> psutil.Process:
        """Return Serve's controller."""
        up = psutil.Process(self.state["up"]["pid"])
        for child in up.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ServeController" in " ".join([child.name(), *child.cmdline()]):
                    return child
        raise LookupError("Serve's controller does not run")

    def finish_stopped(self) -> None:
        """Kill what was stopped and is still there, so that nothing is left behind."""
        for process in self.stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.stopped.clear()


@contextlib.asynccontextmanager
async def deployed(
    groups: int, ranks: int = 2, settings: tuple[str, ...] = ()
) -> AsyncIterator[Deployment]:
    """Start a system, and stop it at the end whatever happened.

    Args:
        groups: number of groups.
        ranks: ranks in each.
        settings: further ``NAME=VALUE`` for ``--set``.

    Raises:
        RuntimeError: it did not start; with what ``up`` said.
    """
    with tempfile.TemporaryDirectory(prefix="moe-serving-faults-") as folder:
        environment = {**os.environ, "MOE_SERVING_STATE_DIR": folder}
        join_port = _free_port()
        proxy = LinkProxy(join_port)
        await proxy.start()
        # The ranks dial the proxy, so that their links can be broken.
        sets = (
            f"link.routers=[127.0.0.1:{proxy.port}]",
            f"router.write_timeout={WRITE_TIMEOUT}",
            *settings,
        )
        flags = [word for item in sets for word in ("--set", item)]
        try:
            where = {
                "--groups": groups,
                "--ranks": ranks,
                "--port": _free_port(),
                "--grpc-port": _free_port(),
                "--join-port": join_port,
            }
            flags += [str(word) for pair in where.items() for word in pair]
            await _run(["up", "--detach", "--no-sample", *flags], environment, START)
            state = json.loads((Path(folder) / "state.json").read_text("utf-8"))
            running = Deployment(
                groups, state["rest_url"], state["grpc_address"], state["model"], proxy, state
            )
            try:
                await running.until_whole()
                yield running
            finally:
                running.finish_stopped()
        finally:
            await _run(["down"], environment, STOP)
            await proxy.stop()


async def _run(words: list[str], environment: dict[str, str], timeout: float) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "serving",
        *words,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(timeout):
            said, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        raise
    if process.returncode:
        raise RuntimeError(f"moe-serving {words[0]}: {said.decode(errors='replace')}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

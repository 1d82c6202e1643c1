"""A real system on this machine: ``moe-serving up`` with its own state folder and free ports."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults.real.link_proxy import LinkProxy
from tests.faults.real.system import START, System
from tests.support.ports import held_port

STOP = 60.0
"""Timeout of ``moe-serving down``, seconds."""
WRITE_TIMEOUT = 10.0
"""router.write_timeout, seconds. Shorter than the default, so that rows wait less."""


@dataclass(slots=True)
class Deployment(System):
    """A system started by ``moe-serving up``."""

    proxy: LinkProxy
    state: dict[str, Any]
    stopped: list[psutil.Process] = field(default_factory=list)
    """Processes stopped with SIGSTOP; killed at the end if they still exist."""

    def router_pid(self) -> int:
        """Return the router's process id."""
        up = psutil.Process(self.state["up"]["pid"])
        for child in up.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "router" in child.cmdline():
                    return child.pid
        raise LookupError("the router does not run")

    def controller(self) -> psutil.Process:
        """Return the process of Ray Serve's controller."""
        up = psutil.Process(self.state["up"]["pid"])
        for child in up.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ServeController" in " ".join([child.name(), *child.cmdline()]):
                    return child
        raise LookupError("Serve's controller does not run")

    def finish_stopped(self) -> None:
        """Kill the stopped processes that still exist."""
        for process in self.stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.stopped.clear()


@contextlib.asynccontextmanager
async def deployed(
    groups: int, ranks: int = 2, settings: tuple[str, ...] = ()
) -> AsyncIterator[Deployment]:
    """Start a system; stop it at the end in any case.

    Args:
        groups: number of groups.
        ranks: ranks in each.
        settings: further ``NAME=VALUE`` for ``--set``.

    Raises:
        RuntimeError: it did not start; has the output of ``up``.
    """
    with tempfile.TemporaryDirectory(prefix="moe-serving-faults-") as folder:
        environment = {**os.environ, "MOE_SERVING_STATE_DIR": folder}
        join_port = held_port()
        proxy = LinkProxy(join_port)
        await proxy.start()
        # Ranks connect through the proxy, which can break their links.
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
                "--port": held_port(),
                "--grpc-port": held_port(),
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
            output, _ = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        raise
    if process.returncode:
        raise RuntimeError(f"moe-serving {words[0]}: {output.decode(errors='replace')}")

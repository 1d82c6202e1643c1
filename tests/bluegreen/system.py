"""The system of the blue/green test: ``moe-serving up``, a second router, and Ray Serve apps."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from serving.cli.local.state import STATE_DIR_VARIABLE, RunState, StateFile
from serving.client.aio import AsyncRestClient
from serving.client.credentials import SETTINGS_FILE
from serving.client.errors import ClientError
from serving.engine.ray.cluster import private_environment
from tests.support.ports import held_port

START, STOP = 900.0, 60.0
"""Timeout, seconds; starting four engines takes minutes on a busy machine."""
_POLL = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """A router's addresses."""

    rest: str
    grpc: str
    model: str

    async def groups(self) -> list[dict[str, Any]]:
        """Return the groups from a router's /fleet; an empty list while it does not respond."""
        try:
            async with AsyncRestClient(self.rest) as client:
                found: list[dict[str, Any]] = (await client.get_json("/fleet", 60))["groups"]
        except (ClientError, KeyError, TypeError):
            return []
        return found

    async def parked(self) -> int:
        """Return the total number of parked requests."""
        async with AsyncRestClient(self.rest) as client:
            page = await client.get_text("/metrics", 60)
        return int(
            sum(
                float(line.rpartition(" ")[2])
                for line in page.splitlines()
                if line.startswith("moe_requests_parked_total")
            )
        )

    async def ready(self, app: str) -> int:
        """Return the number of the app's ready groups."""
        return sum(
            group["app"] == app and group["state"] == "ready" for group in await self.groups()
        )


@dataclass(slots=True)
class System:
    """Two routers and the Ray Serve apps that have joined them."""

    places: tuple[Place, ...]
    folder: Path
    state: RunState
    say: Callable[[str], object]

    async def command(self, *words: str, timeout: float = START) -> int:
        """Run a ``moe-serving`` command against the private Ray cluster; return its exit code.

        Raises:
            TimeoutError: It takes longer than ``timeout`` seconds.
        """
        environment = {
            **os.environ,
            STATE_DIR_VARIABLE: str(self.folder),
            **private_environment(self.state.ray_token),
        }
        return await run(words, environment, timeout, self.say)

    async def deploy(self, app: str, *sets: str) -> None:
        """Deploy an app with the run's settings and changes to them; return when its ranks run.

        Raises:
            RuntimeError: The command failed.
        """
        flags = [word for item in (f"ray.app_name={app}", *sets) for word in ("--set", item)]
        config = str(self.folder / SETTINGS_FILE)
        where = ["--config", config, "--address", self.state.ray_address]
        if await self.command("group", "deploy", *where, *flags):
            raise RuntimeError(f"{app} was not deployed")

    async def delete(self, app: str) -> None:
        """Delete an app; return when its ranks are gone.

        Raises:
            RuntimeError: The command failed.
        """
        config = str(self.folder / SETTINGS_FILE)
        where = ["--config", config, "--address", self.state.ray_address]
        if await self.command("group", "delete", *where, "--set", f"ray.app_name={app}"):
            raise RuntimeError(f"{app} was not deleted")

    async def group_ids(self, app: str) -> list[str]:
        """Return the ids of the app's groups."""
        return sorted(
            {
                group["group_id"]
                for place in self.places
                for group in await place.groups()
                if group["app"] == app
            }
        )

    async def parked(self) -> int:
        """Return the total number of requests that all routers have parked."""
        return sum([await place.parked() for place in self.places])

    async def until_ready(self, app: str, groups: int) -> None:
        """Wait until every router has the given number of ready groups of the app.

        Raises:
            TimeoutError: The groups are not ready in time.
        """
        async with asyncio.timeout(START):
            for place in self.places:
                while await place.ready(app) < groups:  # noqa: ASYNC110  bounded above
                    await asyncio.sleep(_POLL)


@contextlib.asynccontextmanager
async def started(
    folder: Path, app: str, groups: int, sets: tuple[str, ...], say: Callable[[str], object]
) -> AsyncIterator[System]:
    """Start ``up`` with the first app, and a second router; stop everything at the end.

    Raises:
        RuntimeError: Something did not start.
    """
    environment = {**os.environ, STATE_DIR_VARIABLE: str(folder)}
    first, second = _ports(), _ports()
    joins = ",".join(f"127.0.0.1:{ports['--join-port']}" for ports in (first, second))
    changes = (
        f"ray.app_name={app}",
        f"link.routers=[{joins}]",
        # Room for both apps: 2 CPUs per rank.
        f"ray.num_cpus={2 * groups * 4}",
        *sets,
    )
    flags = [word for item in changes for word in ("--set", item)]
    try:
        words = ["up", "--detach", "--no-sample", "--groups", str(groups), *_flags(first), *flags]
        if await run(words, environment, START, say):
            raise RuntimeError("moe-serving up failed")
        state = StateFile(folder).read()
        assert state is not None, "up --detach leaves its state"
        async with _second_router(folder, second) as place:
            places = (Place(state.rest_url, state.grpc_address, state.model), place)
            system = System(places, folder, state, say)
            await system.until_ready(app, groups)
            yield system
    finally:
        await run(["down"], environment, STOP, say)


@contextlib.asynccontextmanager
async def _second_router(folder: Path, ports: Mapping[str, int]) -> AsyncIterator[Place]:
    """Run a second router with the same settings on other ports."""
    config = folder / SETTINGS_FILE
    model = yaml.safe_load(config.read_text("utf-8"))["model"]["name"]
    addresses = folder / "second-router.json"
    command = [sys.executable, "-m", "serving", "router", "--config", str(config)]
    command += [*_flags(ports), "--ports-file", str(addresses)]
    log = folder / "second-router.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=out, stderr=asyncio.subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + START
        while not addresses.exists():
            if process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the second router did not start: {log.read_text('utf-8')}")
            await asyncio.sleep(_POLL)
        found = json.loads(addresses.read_text("utf-8"))
        yield Place(found["rest"], found["grpc"], model)
    finally:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP)
        except TimeoutError:
            process.kill()
            await process.wait()


async def run(
    words: "list[str] | tuple[str, ...]",
    environment: Mapping[str, str],
    timeout: float,
    say: Callable[[str], object],
) -> int:
    """Run a ``moe-serving`` command, pass its output on line by line; return its exit code.

    Raises:
        TimeoutError: It takes longer than ``timeout`` seconds; the command is terminated.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serving", *words,
        env=dict(environment), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout):
            async for line in process.stdout:
                if text := line.decode(errors="replace").strip():
                    say(text)
            return await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        raise


def _ports() -> dict[str, int]:
    return {name: held_port() for name in ("--port", "--grpc-port", "--join-port")}


def _flags(ports: Mapping[str, int]) -> list[str]:
    return [str(word) for pair in ports.items() for word in pair]

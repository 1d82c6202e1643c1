"""Runs the clients' scripts concurrently, and collects the outcome of each feature."""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.clients import installed
from tests.clients.clients import Client
from tests.clients.features import expand, group_of, names
from tests.clients.target import Target

HERE = Path(__file__).resolve().parent
LIMIT = 1200.0
"""Maximum time for all features of a client, seconds."""

Status = Literal["passed", "failed", "reason"]


@dataclass(frozen=True)
class Outcome:
    """Outcome of a feature."""

    status: Status
    reason: str = ""
    trace: str = ""


@dataclass
class Result:
    """Result of a client."""

    client: Client
    versions: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    said: str = ""
    """Output of its process."""

    @property
    def failed(self) -> dict[str, Outcome]:
        """Features that failed, by name."""
        return {n: o for n, o in self.outcomes.items() if o.status == "failed"}


Progress = Callable[[Client, str, Outcome], None]


async def run_clients(
    clients: Sequence[Client],
    target: Target,
    *,
    at_once: int = 2,
    only: Sequence[str] = (),
    progress: Progress = lambda client, name, outcome: None,
    done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Run clients' scripts and return their results in the order of ``clients``.

    Args:
        clients: clients to run.
        target: the router under test.
        at_once: maximum number of concurrent scripts.
        only: full names of features; empty: all.
        progress: called with each outcome.
        done: called with each result.
    """
    gate = asyncio.Semaphore(at_once)

    async def one(client: Client) -> Result:
        async with gate:
            result = await _run(client, target, only, progress)
            done(result)
            return result

    return list(await asyncio.gather(*map(one, clients)))


async def _run(client: Client, target: Target, only: Sequence[str], progress: Progress) -> Result:
    result = Result(client)

    def note(name: str, outcome: Outcome) -> None:
        result.outcomes[name] = outcome
        progress(client, name, outcome)

    if missing := installed.why_not(client.environment):
        _fill(result, only, note, missing)
        return result
    with tempfile.TemporaryDirectory() as folder:
        ended = await _process(client, target, only, Path(folder), result, note)
    _fill(result, only, note, ended)
    return result


async def _process(
    client: Client,
    target: Target,
    only: Sequence[str],
    folder: Path,
    result: Result,
    note: Callable[[str, Outcome], None],
) -> str:
    """Run the script; return why features are missing, if some are."""
    read, write = os.pipe()
    log = folder / "said"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220  a fork takes milliseconds
            _command(client, folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            env={**_environment(client, target, folder), "CLIENT_RESULTS_FD": str(write)}
            | {"CLIENT_FEATURES": ",".join(only)},
            cwd=folder,
        )
    os.close(write)
    ended = "its script ended before this"
    try:
        async with asyncio.timeout(LIMIT):
            await _read(read, result, note)
            await asyncio.to_thread(process.wait, 10)
    except TimeoutError:
        ended = f"its script took longer than {LIMIT:.0f} s"
    finally:
        process.kill()
        process.wait()
    result.said = log.read_text("utf-8", "replace")
    last = result.said.strip().rpartition("\n")[2]
    return f"{ended} (exit status {process.returncode}): {last}"


async def _read(fd: int, result: Result, note: Callable[[str, Outcome], None]) -> None:
    reader = asyncio.StreamReader(limit=2**24)
    loop = asyncio.get_running_loop()
    with os.fdopen(fd, "rb") as pipe:
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        try:
            async for line in reader:
                _take(json.loads(line), result, note)
        finally:
            transport.close()


def _take(line: Mapping[str, Any], result: Result, note: Callable[[str, Outcome], None]) -> None:
    if "versions" in line:
        result.versions = dict(line["versions"])
    elif "cannot" in line:
        for name in expand(line["cannot"]):
            if group_of(name) in result.client.groups:
                result.outcomes.setdefault(name, Outcome("reason", line["reason"]))
    else:
        expand(line["feature"])  # an unknown name is an error in the script
        note(
            line["feature"], Outcome(line["status"], line.get("reason", ""), line.get("trace", ""))
        )


def _fill(
    result: Result, only: Sequence[str], note: Callable[[str, Outcome], None], why: str
) -> None:
    """Record features that a script neither tried nor explained as failed."""
    for name in names(result.client.groups):
        if name not in result.outcomes and (not only or name in only):
            note(name, Outcome("failed", f"neither tried nor explained; {why}"))


def _command(client: Client, folder: Path) -> list[str]:
    if client.environment != "node":
        return [str(installed.python(client.environment)), str(HERE / "python" / client.script)]
    # Node searches packages next to the script.
    copy = folder / "node"
    shutil.copytree(HERE / "node", copy)
    (copy / "node_modules").symlink_to(installed.NODE_MODULES)
    return [str(installed.NODE), str(copy / client.script)]


def _environment(client: Client, target: Target, folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {
        **kept,
        # Libraries keep caches and settings at home; this machine's must not be used.
        "HOME": str(folder),
        "PYTHONUNBUFFERED": "1",
        "CLIENT_PROTO": str(HERE.parents[1] / "proto"),
        **target.environment(client.name),
    }

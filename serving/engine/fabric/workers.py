"""The worker processes of one peer: started, given their job, listened to, killed."""

import asyncio
import contextlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from serving.engine.fabric.plan import Backend, FabricError, Plan
from serving.temporary import temporary_folder

_TAIL_LINES = 3
_LINE_LIMIT = 2**20
Report = Callable[[int, Mapping[str, Any]], None]
"""Takes a worker's number and its report."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What a peer's workers will run."""

    workers: int
    backend: str


class WorkerPool(Protocol):
    """The workers of this peer."""

    async def prepare(self) -> Ready:
        """Start them; return when all can take a job.

        Raises:
            FabricError: one cannot, or this machine lacks what was asked for.
        """
        ...

    def start(self, jobs: Mapping[int, Mapping[str, Any]], report: Report) -> None:
        """Give workers (by number) their jobs and hand on their reports."""
        ...

    async def close(self) -> None:
        """Kill them; none is left when this returns."""
        ...


class Workers:
    """Processes of ``serving.engine.fabric.worker``."""

    def __init__(self, plan: Plan, environment: Mapping[str, str] = os.environ) -> None:
        self._plan = plan
        self._open = contextlib.ExitStack()
        self._folder = self._open.enter_context(temporary_folder("moe-fabric-"))
        self._environment = {
            **environment,
            # For the check of contents on CPUs; many workers share them.
            "OMP_NUM_THREADS": "1",
            # Workers get addresses, no names; torch's store looks up a name for each address all
            # the same, ten seconds where no name server answers.
            "RES_OPTIONS": "timeout:1 attempts:1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            # Workers are killed in the end, and what they have written goes with the folder.
            "TMPDIR": str(self._folder),
        }
        self._processes: list[asyncio.subprocess.Process] = []
        self._listeners: list[asyncio.Task[None]] = []

    async def prepare(self) -> Ready:
        """Start one, learn from it how many GPUs there are, then start the others."""
        gpus = await self._first_words(await self._spawn(), 0)
        backend = self._plan.backend
        if backend is Backend.AUTO:
            backend = Backend.NCCL if gpus else Backend.GLOO
        count = self._plan.workers or max(1, gpus)
        if backend is Backend.NCCL and count > gpus:
            raise FabricError(
                f"--backend nccl with {count} workers needs {count} GPUs, and torch sees {gpus} "
                "here: does the pod ask for them, and does the image have the CUDA build of torch?"
            )
        others = [await self._spawn() for _ in range(count - 1)]
        await asyncio.gather(
            *(self._first_words(process, place + 1) for place, process in enumerate(others))
        )
        return Ready(count, backend.value)

    def start(self, jobs: Mapping[int, Mapping[str, Any]], report: Report) -> None:
        """Give workers their jobs and hand on their reports.

        The end of a process without a result is reported as an error.
        """
        for number, job in jobs.items():
            process = self._processes[number]
            assert process.stdin is not None
            process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
            self._listeners.append(asyncio.create_task(self._listen(number, process, report)))

    async def close(self) -> None:
        """Kill them."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        for task in self._listeners:
            task.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)
        for process in self._processes:
            await process.wait()
        self._open.close()

    async def _spawn(self) -> asyncio.subprocess.Process:
        log = self._log(len(self._processes))
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "serving.engine.fabric.worker", str(os.getpid()),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
                env=self._environment, start_new_session=True, limit=_LINE_LIMIT,
            )  # fmt: skip
        self._processes.append(process)
        return process

    async def _first_words(self, process: asyncio.subprocess.Process, number: int) -> int:
        """Return how many GPUs a worker sees, when it is ready."""
        assert process.stdout is not None
        async for line in process.stdout:
            said = _report_of(line)
            if said is not None:
                return int(said["gpus"])
        await process.wait()
        raise FabricError(f"worker {number} did not start: {self._why(number, process)}")

    async def _listen(
        self, number: int, process: asyncio.subprocess.Process, report: Report
    ) -> None:
        assert process.stdout is not None
        done = False
        async for line in process.stdout:
            said = _report_of(line)
            if said is not None:
                done = done or said["event"] in {"result", "error"}
                report(number, said)
        await process.wait()
        if not done:
            report(number, {"event": "error", "kind": "exit", "text": self._why(number, process)})

    def _why(self, number: int, process: asyncio.subprocess.Process) -> str:
        code = process.returncode
        ended = (
            f"killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        )
        with self._log(number).open("r", encoding="utf-8", errors="replace") as log:
            last = " | ".join(text for line in deque(log, _TAIL_LINES) if (text := line.strip()))
        return f"its process ended ({ended}){': ' + last if last else ''}"

    def _log(self, number: int) -> Path:
        return self._folder / f"worker-{number}.log"


def _report_of(line: bytes) -> dict[str, Any] | None:
    """Return a worker's report; ``None`` for what a library writes to the same place."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    return said if isinstance(said, dict) and "event" in said else None

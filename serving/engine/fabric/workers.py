"""Worker processes of one peer: start, jobs, reports, termination."""

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
"""Callback with a worker's number and its report."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Number and backend of a peer's workers that are ready for a job."""

    workers: int
    backend: str


class WorkerPool(Protocol):
    """The workers of this peer."""

    async def prepare(self) -> Ready:
        """Start the workers; return when all are ready for a job.

        Raises:
            FabricError: A worker does not start, or this machine has too few GPUs for the plan.
        """
        ...

    def start(self, jobs: Mapping[int, Mapping[str, Any]], report: Report) -> None:
        """Send jobs to workers (by number), and forward their reports."""
        ...

    async def close(self) -> None:
        """Kill all workers and wait for their end."""
        ...


class Workers:
    """Pool of ``serving.engine.fabric.worker`` processes."""

    def __init__(self, plan: Plan, environment: Mapping[str, str] = os.environ) -> None:
        self._plan = plan
        self._open = contextlib.ExitStack()
        self._folder = self._open.enter_context(temporary_folder("moe-fabric-"))
        self._environment = {
            **environment,
            # Workers share the CPUs when they verify contents.
            "OMP_NUM_THREADS": "1",
            # torch's store performs a reverse lookup of each address, which takes ten seconds if
            # no name server answers.
            "RES_OPTIONS": "timeout:1 attempts:1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            # Workers are killed at the end and leave files, which are removed with the folder.
            "TMPDIR": str(self._folder),
        }
        self._processes: list[asyncio.subprocess.Process] = []
        self._listeners: list[asyncio.Task[None]] = []

    async def prepare(self) -> Ready:
        """Start one worker, which reports the number of GPUs, then the other workers."""
        gpus = await self._first_report(await self._spawn(), 0)
        backend = self._plan.backend
        if backend is Backend.AUTO:
            backend = Backend.NCCL if gpus else Backend.GLOO
        count = self._plan.workers or max(1, gpus)
        if backend is Backend.NCCL and count > gpus:
            raise FabricError(
                f"--backend nccl with {count} workers needs {count} GPUs, but torch finds {gpus}: "
                "check that the pod requests them and that the image has the CUDA build of torch"
            )
        others = [await self._spawn() for _ in range(count - 1)]
        await asyncio.gather(
            *(self._first_report(process, place + 1) for place, process in enumerate(others))
        )
        return Ready(count, backend.value)

    def start(self, jobs: Mapping[int, Mapping[str, Any]], report: Report) -> None:
        """Send jobs to workers, and forward their reports.

        A process that ends without a result is reported as an error.
        """
        for number, job in jobs.items():
            process = self._processes[number]
            assert process.stdin is not None
            process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
            self._listeners.append(asyncio.create_task(self._listen(number, process, report)))

    async def close(self) -> None:
        """Kill the workers and remove their files."""
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

    async def _first_report(self, process: asyncio.subprocess.Process, number: int) -> int:
        """Wait until a worker is ready; return the number of visible GPUs."""
        assert process.stdout is not None
        async for line in process.stdout:
            message = _report_of(line)
            if message is not None:
                return int(message["gpus"])
        await process.wait()
        raise FabricError(f"worker {number} did not start: {self._why(number, process)}")

    async def _listen(
        self, number: int, process: asyncio.subprocess.Process, report: Report
    ) -> None:
        assert process.stdout is not None
        done = False
        async for line in process.stdout:
            message = _report_of(line)
            if message is not None:
                done = done or message["event"] in {"result", "error"}
                report(number, message)
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
        return f"its process exited ({ended}){': ' + last if last else ''}"

    def _log(self, number: int) -> Path:
        return self._folder / f"worker-{number}.log"


def _report_of(line: bytes) -> dict[str, Any] | None:
    """Decode a worker's report; return ``None`` for output of libraries."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and "event" in message else None

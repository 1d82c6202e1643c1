"""Drain of all ranks of a machine through a file, without a key, a port or Ray.

``moe-serving leave``, the preStop hook of a pod, writes a request file. Every rank on the machine
then drains, announces the drain on all of its router connections, and renames its file.

    <folder>/leave        the request: time for running requests, seconds
    <folder>/<pid>.rank   a serving rank
    <folder>/<pid>.left   the same rank after its drain
"""

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from serving.clock import Clock

FOLDER = Path(tempfile.gettempdir()) / f"moe-serving-ranks-{os.getuid()}"
"""Default folder, one per user. The temporary folder of a pod is private to the pod."""
_REQUEST = "leave"
_POLL_SECONDS = 0.5

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Drain = Callable[[str, float], Awaitable[bool]]


class LeaveWatch:
    """Waits for a leave request and drains the rank."""

    def __init__(self, drain: Drain, clock: Clock, folder: Path | None = None) -> None:
        """Create the watch without starting it.

        Args:
            drain: Drains with a reason and a timeout in seconds; returns whether all requests
                finished.
            clock: Source of time.
            folder: Folder of the request; ``FOLDER`` by default.
        """
        self._drain = drain
        self._clock = clock
        self._folder = folder or FOLDER
        self._mine = self._folder / f"{os.getpid()}.rank"
        self._left = self._mine.with_suffix(".left")
        self._since = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start watching. Logs a warning and does nothing if the folder is unusable."""
        self._since = self._clock.time()
        try:
            # Requests are accepted only from the same user.
            self._folder.mkdir(mode=0o700, exist_ok=True)
            found = self._folder.lstat()
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                raise PermissionError(f"{self._folder} is not a folder owned by this user")
            self._sweep()
            self._mine.touch()
        except OSError as error:
            log.warning("moe-serving leave will have no effect on this rank", error=str(error))
            return
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Stop watching and remove the rank's file. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for file in (self._mine, self._left):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove the files of killed ranks, because their process ids can be reused."""
        for file in self._folder.glob("*.*"):
            if file.suffix in (".rank", ".left") and not _lives(int(file.stem)):
                file.unlink(missing_ok=True)

    async def _watch(self) -> None:
        while (timeout := self.requested()) is None:  # noqa: ASYNC110  file changes raise no event
            await asyncio.sleep(_POLL_SECONDS)
        log.info("draining: the machine is leaving", timeout=timeout)
        finished = await self._drain("its node is being removed", timeout)
        log.info("the rank has left", finished=finished)
        with contextlib.suppress(OSError):
            self._mine.rename(self._left)

    def requested(self) -> float | None:
        """Return the timeout of a request made since this rank started, or ``None``."""
        file = self._folder / _REQUEST
        try:
            if file.stat().st_mtime < self._since:
                return None
            return float(file.read_text("ascii"))
        except (OSError, ValueError):
            return None


def request_leave(timeout: float, folder: Path | None = None) -> None:
    """Request all ranks of this machine to drain for at most ``timeout`` seconds each.

    Raises:
        OSError: No rank of this user has run on this machine.
    """
    where = folder or FOLDER
    # Rename atomically: readers never see a partial file.
    made = where / f".{_REQUEST}.{os.getpid()}"
    made.write_text(f"{timeout:g}", "ascii")
    made.rename(where / _REQUEST)


def serving_ranks(folder: Path | None = None) -> list[int]:
    """Return the process ids of this machine's ranks that have not drained yet."""
    found = sorted(int(file.stem) for file in (folder or FOLDER).glob("*.rank"))
    return [pid for pid in found if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

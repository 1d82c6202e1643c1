"""How a machine's ranks are told that it goes, without a key, a port or Ray: by a file.

``moe-serving leave``, which a pod's preStop hook runs, asks; every rank on the machine drains over
its links to the routers, so that all of them know, and marks itself as left.

    <folder>/leave        the request: how many seconds running requests may take
    <folder>/<pid>.rank   a rank that serves
    <folder>/<pid>.left   the same, drained
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
"""Each user has one; a pod has its own temporary folder."""
_REQUEST = "leave"
_POLL_SECONDS = 0.5

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Drain = Callable[[str, float], Awaitable[bool]]


class LeaveWatch:
    """One rank's side: waits for the request and drains."""

    def __init__(self, drain: Drain, clock: Clock, folder: Path | None = None) -> None:
        """Watch ``folder``; ``drain`` takes the reason and a time-out in seconds."""
        self._drain = drain
        self._clock = clock
        self._folder = folder or FOLDER
        self._mine = self._folder / f"{os.getpid()}.rank"
        self._left = self._mine.with_suffix(".left")
        self._since = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch. A folder that cannot be used is told in the log, no more."""
        self._since = self._clock.time()
        try:
            # Requests are obeyed: they must come from the same user.
            self._folder.mkdir(mode=0o700, exist_ok=True)
            found = self._folder.lstat()
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                raise PermissionError(f"{self._folder} is no folder of this user")
            self._sweep()
            self._mine.touch()
        except OSError as error:
            log.warning("moe-serving leave will not be heard", error=str(error))
            return
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Watch no more, and leave no file. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for file in (self._mine, self._left):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove the files of ranks that were killed: their numbers go to other processes."""
        for file in self._folder.glob("*.*"):
            if file.suffix in (".rank", ".left") and not _lives(int(file.stem)):
                file.unlink(missing_ok=True)

    async def _watch(self) -> None:
        while (timeout := self._asked()) is None:  # noqa: ASYNC110  a file gives no event
            await asyncio.sleep(_POLL_SECONDS)
        log.info("this machine goes: the rank drains", timeout=timeout)
        finished = await self._drain("its machine goes", timeout)
        log.info("the rank has left", finished=finished)
        with contextlib.suppress(OSError):
            self._mine.rename(self._left)

    def _asked(self) -> float | None:
        """Return the time-out of a request that is about this rank; an older one is not."""
        file = self._folder / _REQUEST
        try:
            if file.stat().st_mtime < self._since:
                return None
            return float(file.read_text("ascii"))
        except (OSError, ValueError):
            return None


def ask_to_leave(timeout: float, folder: Path | None = None) -> None:
    """Ask all ranks of this machine to drain, for at most ``timeout`` seconds each.

    Raises:
        OSError: no rank has run here as this user.
    """
    where = folder or FOLDER
    # Whoever reads it must not see half of it.
    made = where / f".{_REQUEST}.{os.getpid()}"
    made.write_text(f"{timeout:g}", "ascii")
    made.rename(where / _REQUEST)


def serving_ranks(folder: Path | None = None) -> list[int]:
    """Return the process ids of the ranks of this machine that have not left yet."""
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

"""The processes that vLLM starts for an engine: watched over, measured, and all ended."""

import contextlib
import logging
import multiprocessing
from multiprocessing import resource_tracker
from typing import Any

import psutil

from serving.clock import Clock
from serving.engine import fork_server
from serving.engine.reaper import Reaper

_log = logging.getLogger(__name__)

_KILL_TIMEOUT = 5.0
"""Seconds from killing a process to its being gone."""

_MEMORY_INTERVAL = 2.0
"""Seconds between two readings of resident memory."""


class EngineProcesses:
    """Children of this process that belong to one engine.

    Use: :meth:`watch` before the engine starts (and :meth:`fork` before vLLM is imported, if they
    are to be forked), :meth:`started` when it runs, :meth:`end`.
    """

    def __init__(self, clock: Clock) -> None:
        """Have no processes yet."""
        self._clock = clock
        self._reaper: Reaper | None = None
        self._fork_server: int | None = None
        self._starting = False
        self._before: set[psutil.Process] = set()
        self._processes: set[psutil.Process] = set()
        self._memory = 0
        self._memory_read = float("-inf")

    def watch(self) -> str:
        """Watch what is started from here on; return a folder for the engine's sockets.

        A second call changes nothing.

        Raises:
            OSError: the watching process does not start.
        """
        if self._reaper is not None:
            return self._reaper.folder
        self._reaper = Reaper()
        self._reaper.wait_watching()
        self._before = _children()
        self._starting = True
        return self._reaper.folder

    def fork(self) -> None:
        """Watch, and start what the engine's processes can be forked from.

        Raises:
            OSError: a process does not start.
        """
        self._fork_server = fork_server.start_fork_server(self.watch())

    @property
    def forked(self) -> bool:
        """Whether there is a server that they are to be forked from."""
        return self._fork_server is not None

    def started(self) -> None:
        """Take what has been started for the engine's.

        Raises:
            OSError: the watching process is gone.
        """
        if self._reaper is not None:
            self._reaper.started()
        self._starting = False
        self._processes = _children() - self._before

    def resident_bytes(self) -> int:
        """Add up the resident memory of this process and the engine's; cheap to ask often."""
        now = self._clock.monotonic()
        if now - self._memory_read >= _MEMORY_INTERVAL:
            self._memory_read = now
            self._memory = 0
            for process in (psutil.Process(), *self._processes):
                # Nearly all of the server's memory is shared with what was forked from it.
                if process.pid != self._fork_server:
                    with contextlib.suppress(psutil.Error):
                        self._memory += process.memory_info().rss
        return self._memory

    def end(self) -> None:
        """Kill what has not ended by itself. Blocks until all are gone; safe to call twice."""
        if self._starting:
            self._starting = False
            self._processes = _children() - self._before
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.close()
        pids = {process.pid for process in self._processes}
        for child in multiprocessing.active_children():
            # Not by psutil: it would take the exit status away from multiprocessing.
            if child.pid in pids:
                child.join(_KILL_TIMEOUT)
        pids -= _stop_resource_tracker()
        _, alive = psutil.wait_procs(
            [process for process in self._processes if process.pid in pids],
            timeout=_KILL_TIMEOUT,
        )
        for process in alive:
            _log.warning("process %d of the engine does not end", process.pid)
        self._processes = set()


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _stop_resource_tracker() -> set[int]:
    """End multiprocessing's helper process, or return its id if others still need it."""
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001  it has no public end
    if multiprocessing.active_children():
        return {tracker._pid} - {None}  # noqa: SLF001
    with contextlib.suppress(OSError, AttributeError):
        tracker._stop()  # noqa: SLF001
    return set()

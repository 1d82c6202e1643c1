"""Tracking, memory measurement and termination of the processes that vLLM starts."""

import contextlib
import logging
import multiprocessing
import os
import shutil
import tempfile
from multiprocessing import resource_tracker
from typing import Any

import psutil

from serving.clock import Clock
from serving.engine import fork_server
from serving.engine.orphan_reaper import OrphanReaper
from serving.engine.processes import ProcessRecord, descendants, end, wait_gone

_log = logging.getLogger(__name__)

_END_TIMEOUT = 5.0
"""Maximum time for a process to end after its parent, seconds."""

_MEMORY_INTERVAL = 2.0
"""Interval between reads of resident memory, seconds."""


class EngineProcesses:
    """The descendants of this process that belong to one engine.

    Call :meth:`watch` before the engine starts (or :meth:`fork` before vLLM is imported, to fork
    the processes from a server), :meth:`started` when the engine runs, and finally :meth:`end`.
    """

    def __init__(self, clock: Clock) -> None:
        """Create the object; no process is tracked yet."""
        self._clock = clock
        self._folder = ""
        self._reaper: OrphanReaper | None = None
        self._fork_server: int | None = None
        self._starting = False
        self._before: set[int] = set()
        self._processes: tuple[ProcessRecord, ...] = ()
        self._memory = 0
        self._memory_read = float("-inf")

    def watch(self) -> str:
        """Track every process started from now on. A second call does nothing.

        Returns:
            Path of a folder for the engine's sockets; :meth:`end` removes it.

        Raises:
            OSError: The orphan reaper does not start.
        """
        if self._reaper is not None:
            return self._folder
        self._folder = tempfile.mkdtemp(prefix="moe-serving-")
        reaper = None
        try:
            reaper = OrphanReaper(str(os.getpid()), self._folder)
            reaper.wait_watching()
        except OSError:
            if reaper is not None:
                reaper.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._reaper = reaper
        self._before = {item.pid for item in descendants(os.getpid())}
        self._starting = True
        return self._folder

    def fork(self) -> None:
        """Call :meth:`watch` and start the fork server for the engine's processes.

        Raises:
            OSError: The orphan reaper or the fork server does not start.
        """
        self._fork_server = fork_server.start_fork_server(self.watch())

    @property
    def forked(self) -> bool:
        """Whether the engine's processes are forked from a server."""
        return self._fork_server is not None

    def started(self) -> None:
        """Stop tracking new processes, because the engine has started.

        Raises:
            OSError: The orphan reaper has ended.
        """
        if self._reaper is not None:
            self._reaper.started()
        self._update()

    def resident_bytes(self) -> int:
        """Return the resident bytes of this and the engine's processes, read at most 2 s ago."""
        now = self._clock.monotonic()
        if now - self._memory_read >= _MEMORY_INTERVAL:
            self._memory_read = now
            self._memory = 0
            for pid in (os.getpid(), *(item.pid for item in self._processes)):
                # Nearly all of the fork server's memory is shared with its forked processes.
                if pid != self._fork_server:
                    with contextlib.suppress(psutil.Error):
                        self._memory += psutil.Process(pid).memory_info().rss
        return self._memory

    def end(self) -> None:
        """Wait for the engine's processes to end, then kill the rest. Safe to call twice."""
        if self._starting:
            self._update()
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            reaper.close()
        pids = {item.pid for item in self._processes}
        for child in multiprocessing.active_children():
            # psutil would consume the exit status that multiprocessing waits for.
            if child.pid in pids:
                child.join(_END_TIMEOUT)
        needed = _stop_resource_tracker()
        left = wait_gone((item for item in self._processes if item.pid not in needed), _END_TIMEOUT)
        # Processes remain here only if the reaper was killed.
        for pid in end(left, grace=0.0):
            _log.warning("process %d of the engine cannot be killed", pid)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._processes = ()

    def _update(self) -> None:
        self._starting = False
        self._processes = tuple(
            item for item in descendants(os.getpid()) if item.pid not in self._before
        )


def _stop_resource_tracker() -> set[int]:
    """Stop multiprocessing's resource tracker, or return its pid if other children use it."""
    tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001  no public API stops it
    if multiprocessing.active_children():
        return {tracker._pid} - {None}  # noqa: SLF001
    with contextlib.suppress(OSError, AttributeError):
        tracker._stop()  # noqa: SLF001
    return set()

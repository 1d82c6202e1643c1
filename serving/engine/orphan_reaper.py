"""Orphan reaper: ends the processes of an owner that died without ending them.

An owner is a rank or ``moe-serving up``. After SIGKILL of their parent, vLLM's engine core keeps
running and Ray's agents retry for a minute; both hold memory and ports. PR_SET_PDEATHSIG is not
sufficient: it affects direct children only, and it fires when the *thread* that started the child
ends.

Each owner therefore starts a reaper, a small process that reads from a pipe whose write end only
the owner holds. The pipe closes when the owner dies, and the reaper then ends the owner's
processes. The reaper runs in a separate session and is not a child of the owner, so it survives
Ctrl-C, the end of the session, and Ray, which kills a worker together with its children.

Two modules run as reapers: this one for a rank, whose descendants it tracks while the engine
starts, and :mod:`serving.cli.keeper` for ``up``, whose processes are listed in the state file.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from serving.engine import processes
from serving.engine.processes import ProcessRecord

_SCAN_INTERVAL = 1.0
"""Interval between scans of a rank's descendants while the engine starts, seconds."""

_STARTED = b"s"
"""Byte that a rank sends when its engine has started."""

_ANSWER_TIMEOUT = 30.0
"""Timeout for the reaper's start and its answers, seconds; typically well below 1 s."""

_ANSWER_LIMIT = 64
"""Maximum length of an answer, bytes: the reaper's process id and a line feed."""


class OrphanReaper:
    """The owner's end of the pipe."""

    def __init__(self, *arguments: str, module: str = "serving.engine.orphan_reaper") -> None:
        """Start a reaper.

        Args:
            arguments: The module's command line.
            module: Python module to run; it must call :func:`detach` and :func:`wait_for_owner`.

        Raises:
            OSError: The reaper cannot be started.
        """
        self._pid = 0
        self._answers = -1
        reader, self._writer = os.pipe()
        answers, answers_writer = os.pipe()
        try:
            subprocess.run(
                [sys.executable, "-m", module, *arguments],
                stdin=reader,
                stdout=answers_writer,
                start_new_session=True,
                # The reaper does not need the libraries preloaded for vLLM.
                env=os.environ | {"LD_PRELOAD": ""},
                check=False,
                timeout=_ANSWER_TIMEOUT,
            )
            self._answers = answers
        except (OSError, subprocess.TimeoutExpired) as error:
            os.close(answers)
            self.close()
            raise OSError(f"cannot start the orphan reaper: {error}") from error
        finally:
            os.close(reader)
            os.close(answers_writer)

    @property
    def pid(self) -> int:
        """Process id of the reaper; 0 until it has answered."""
        return self._pid

    def wait_watching(self) -> None:
        """Wait until the reaper tracks the owner; processes started from then on are covered.

        Raises:
            OSError: The reaper ended, or did not answer in time.
        """
        ready, _, _ = select.select([self._answers], [], [], _ANSWER_TIMEOUT)
        if not ready:
            raise OSError(
                f"the orphan reaper did not respond within {_ANSWER_TIMEOUT:g} s: "
                "this machine is low on memory or CPU time"
            )
        answer = os.read(self._answers, _ANSWER_LIMIT)
        if not answer:
            raise OSError("the orphan reaper has exited")
        self._pid = int(answer)

    def started(self) -> None:
        """Make the reaper scan one last time; it ignores children that the owner starts later.

        Raises:
            OSError: The reaper ended, or did not answer in time.
        """
        os.write(self._writer, _STARTED)
        self.wait_watching()

    def close(self, timeout: float = 10.0) -> None:
        """Make the reaper end the remaining processes, and wait for it. Safe to call twice.

        Args:
            timeout: Time after which the reaper itself is killed, seconds.
        """
        if self._writer < 0:
            return
        os.close(self._writer)
        self._writer = -1
        if self._answers < 0:
            return
        if not self._ended(time.monotonic() + timeout) and self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        os.close(self._answers)
        self._answers = -1

    def _ended(self, deadline: float) -> bool:
        """Wait for the answer pipe to close (the reaper ended); return False on timeout."""
        while True:
            left = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._answers], [], [], left)
            if not ready or not os.read(self._answers, _ANSWER_LIMIT):
                return bool(ready)


def detach() -> None:
    """Fork, exit the parent, and ignore terminal signals. Call in the reaper's process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        os._exit(0)


def wait_for_owner(scan: Callable[[], object] | None = None) -> None:
    """Wait until standard input closes (the owner ended). Call in the reaper's process.

    Args:
        scan: Called every second until the owner reports that it has started.
    """
    _answer()
    while True:
        ready, _, _ = select.select([0], [], [], None if scan is None else _SCAN_INTERVAL)
        if scan is not None:
            scan()
        if ready:
            if not os.read(0, 1):
                return
            scan = None
            _answer()


class _StartedBelow:
    """Descendants that an owner starts from now on, including those whose parent has died."""

    def __init__(self, owner: int) -> None:
        self._owner = owner
        me = processes.record(os.getpid())
        self._before = {_identity(item) for item in (*processes.descendants(owner), me) if item}
        self._found: dict[tuple[int, float], ProcessRecord] = {}

    def scan(self) -> None:
        """Add the owner's current descendants."""
        for item in processes.descendants(self._owner):
            if _identity(item) not in self._before:
                self._found[_identity(item)] = item

    def found(self) -> tuple[ProcessRecord, ...]:
        """Return all processes seen so far and their current descendants."""
        below = [child for item in self._found.values() for child in _below(item)]
        return tuple({_identity(item): item for item in (*self._found.values(), *below)}.values())


def _identity(item: ProcessRecord) -> tuple[int, float]:
    # The name is ignored, because processes rename themselves.
    return item.pid, item.create_time


def _below(item: ProcessRecord) -> tuple[ProcessRecord, ...]:
    return () if processes.find(item) is None else processes.descendants(item.pid)


def main(owner: int, folder: str) -> None:
    """Wait until the rank ends, then end its engine's processes and remove the socket folder.

    Args:
        owner: Process id of the rank.
        folder: Path of the engine's socket folder.
    """
    detach()
    try:
        rank = processes.record(owner)
        started = _StartedBelow(owner)
        wait_for_owner(started.scan)
        engine = started.found()
        processes.end(engine, grace=0.0, spare=_is_resource_tracker)
        for item in engine:
            _remove_openmp_file(item.pid)
        if rank is None or processes.find(rank) is None:
            _remove_openmp_file(owner)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answer() -> None:
    os.write(sys.stdout.fileno(), f"{os.getpid()}\n".encode())


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Return whether the process is multiprocessing's resource tracker.

    The tracker frees shared memory and ends with its last user; a rank that is still running
    needs it.
    """
    try:
        return any("multiprocessing.resource_tracker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _remove_openmp_file(pid: int) -> None:
    """Remove the shared-memory file that Intel OpenMP leaves when a process is killed."""
    for file in Path("/dev/shm").glob(f"__KMP_REGISTERED_LIB_{pid}_*"):  # noqa: S108
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

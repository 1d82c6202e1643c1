"""Process management by identity: record, find, start and end processes.

A process is identified by process id and start time, so a later process that reuses the id is
never signalled. Processes of ``moe-serving up``, of ranks and of engines are killed only by
:func:`end`; :mod:`serving.engine.orphan_reaper` calls it after their owner has died.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_CLOCK_TICK = 0.02
"""Tolerance for comparing start times, seconds: two kernel ticks of 10 ms."""
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Identity of a process, distinct from later processes with the same id."""

    pid: int
    create_time: float
    """Start time from the kernel (psutil), seconds since the Unix epoch."""
    name: str


def spawn(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in a new session; the kernel sends it SIGTERM when this process dies.

    The new session shields it from the terminal's Ctrl-C, which reaches only ``up``; ``up`` then
    stops the other processes in order. Call from the main thread (see ``_death_signal``).

    Args:
        command: Program and arguments.
        log: File to append the command's output to.
        environment: Complete environment of the command; by default a copy of this process's.
    """
    with log.open("ab") as out:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=None if environment is None else dict(environment),
            preexec_fn=_death_signal,  # noqa: PLW1509  one system call, no locks
        )


def record(pid: int) -> ProcessRecord | None:
    """Return the record of a live process, or ``None`` if it does not exist."""
    try:
        process = psutil.Process(pid)
        return ProcessRecord(pid, process.create_time(), process.name())
    except psutil.Error:
        return None


def descendants(pid: int) -> tuple[ProcessRecord, ...]:
    """Return the records of all live processes below ``pid``, without ``pid`` itself."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return ()
    found = (record(child.pid) for child in children)
    return tuple(item for item in found if item is not None)


def same(one: ProcessRecord, other: ProcessRecord) -> bool:
    """Return whether two records identify the same process, regardless of its name."""
    apart = abs(one.create_time - other.create_time)
    return one.pid == other.pid and apart <= _CLOCK_TICK


def find(item: ProcessRecord) -> psutil.Process | None:
    """Return the recorded process, or ``None`` if it has ended or is a zombie."""
    try:
        process = psutil.Process(item.pid)
        found = ProcessRecord(item.pid, process.create_time(), item.name)
    except psutil.Error:
        return None
    return process if same(found, item) and _lives(process) else None


def living(items: Iterable[ProcessRecord]) -> list[psutil.Process]:
    """Return the recorded processes that are still alive."""
    return [process for item in items if (process := find(item)) is not None]


def still_living(items: Iterable[ProcessRecord]) -> tuple[ProcessRecord, ...]:
    """Return the records whose processes are still alive."""
    return tuple(item for item in items if find(item) is not None)


def wait_gone(items: Iterable[ProcessRecord], timeout: float) -> tuple[ProcessRecord, ...]:
    """Wait up to ``timeout`` seconds for processes to end; return those that have not."""
    items = tuple(items)
    _wait(living(items), timeout)
    return still_living(items)


def end(
    items: Iterable[ProcessRecord],
    *,
    grace: float,
    kill_wait: float = 30.0,
    spare: Callable[[psutil.Process], bool] = lambda _: False,
) -> list[int]:
    """End processes and their descendants, except this process: SIGTERM, then SIGKILL.

    Args:
        items: Processes to end; ended ones are ignored.
        grace: Time between SIGTERM and SIGKILL, seconds; 0 sends SIGKILL immediately.
        kill_wait: Maximum wait after SIGKILL, seconds; a busy machine frees memory slowly.
        spare: Returns whether to exclude a process.

    Returns:
        Ids of processes that are still alive; empty on success.
    """
    targets = _with_children(living(items), spare)
    if grace > 0:
        for process in targets:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _wait(targets, grace)
    # Collect children again: more may have been started in the meantime.
    targets = _with_children([process for process in targets if _lives(process)], spare)
    for process in targets:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait(targets, kill_wait)
    return [process.pid for process in targets if _lives(process)]


def _with_children(
    processes: Iterable[psutil.Process], spare: Callable[[psutil.Process], bool]
) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in processes:
        found[process.pid] = process
        with contextlib.suppress(psutil.Error):
            found |= {child.pid: child for child in process.children(recursive=True)}
    found.pop(os.getpid(), None)
    return [process for process in found.values() if not spare(process)]


def _wait(processes: Iterable[psutil.Process], timeout: float) -> None:
    """Wait up to ``timeout`` seconds until all processes have ended; zombies count as ended."""
    deadline = time.monotonic() + timeout
    waiting = [process for process in processes if _lives(process)]
    while waiting and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        waiting = [process for process in waiting if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _death_signal() -> None:
    """Request SIGTERM when the starting thread ends. Runs in the child before exec.

    libc is loaded before the fork because no lock may be acquired here.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None)

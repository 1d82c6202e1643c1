"""Starting processes that end with us, and ending them for certain.

A process is named by its id and its start time together, so a recycled id is never hit.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from serving.cli.local.state import ProcessRecord

_PR_SET_PDEATHSIG = 1
_CLOCK_TICK = 0.02
"""Start times are kept to a kernel tick (10 ms); two of them is "the same"."""


def _death_signal() -> None:
    """In the child, before exec: SIGTERM when the thread that started it ends.

    libc is looked up before the fork, so that nothing here takes a lock.
    """
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None)


def spawn(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``command`` with its output in ``log``; it is ended when this process dies.

    ``environment`` is all that it gets; by default it is ours.

    It gets a session of its own: Ctrl-C in the terminal then reaches ``up`` alone, which
    stops the rest in order. Call from the main thread (see ``_death_signal``).
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
    """Return the record of a live process, or ``None``."""
    try:
        process = psutil.Process(pid)
        return ProcessRecord(pid, process.create_time(), process.name())
    except psutil.Error:
        return None


def descendants(pid: int) -> tuple[ProcessRecord, ...]:
    """Return the records of all processes that live under ``pid``, not its own."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return ()
    found = (record(child.pid) for child in children)
    return tuple(item for item in found if item is not None)


def find(item: ProcessRecord) -> psutil.Process | None:
    """Return the process of the record if it lives still and is the same one."""
    try:
        process = psutil.Process(item.pid)
        same = abs(process.create_time() - item.create_time) <= _CLOCK_TICK
        alive = process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if same and alive else None


def living(items: Iterable[ProcessRecord]) -> list[psutil.Process]:
    """Return those of the recorded processes that live still."""
    return [process for item in items if (process := find(item)) is not None]


def still_living(items: Iterable[ProcessRecord]) -> tuple[ProcessRecord, ...]:
    """Return the records of those that live still."""
    return tuple(item for item in items if find(item) is not None)


def end(items: Iterable[ProcessRecord], grace: float, kill_wait: float = 2.0) -> list[int]:
    """End recorded processes and what they have started since: SIGTERM, then SIGKILL.

    Args:
        items: whom to end; those that are gone already are ignored.
        grace: seconds between SIGTERM and SIGKILL; 0 kills at once.
        kill_wait: seconds to wait for the killed to be gone.

    Returns:
        Ids of processes that live even so; empty when all is well.
    """
    targets = _with_children(living(items))
    if grace > 0:
        for process in targets:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _wait(targets, grace)
    # Whoever was started in the meantime goes too.
    targets = _with_children([process for process in targets if _lives(process)])
    for process in targets:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait(targets, kill_wait)
    return [process.pid for process in targets if _lives(process)]


def _with_children(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for process in processes:
        found[process.pid] = process
        with contextlib.suppress(psutil.Error):
            found |= {child.pid: child for child in process.children(recursive=True)}
    found.pop(os.getpid(), None)
    return list(found.values())


def _wait(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait until none lives; a zombie whose parent is busy counts as gone."""
    deadline = time.monotonic() + seconds
    waiting = list(processes)
    while waiting and time.monotonic() < deadline:
        waiting = [process for process in waiting if _lives(process)]
        if waiting:
            time.sleep(0.02)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

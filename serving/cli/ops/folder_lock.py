"""A lock on a folder that several pods of one node share: one works in it, the others wait.

The kernel gives the lock back when its holder ends, however it ends.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from serving.clock import Clock
from serving.errors import EngineError

LOCK = ".moe-serving-lock"
"""File in the folder; it stays, and holds the name of the last holder."""
POLL_SECONDS = 2.0
_TELL_EVERY = 30.0
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_TAKEN = {errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN}


@contextlib.contextmanager
def locked(
    folder: Path,
    timeout: float,
    clock: Clock,
    sleep: Callable[[float], object],
    say: Callable[[str], object],
    *,
    done: Callable[[], bool],
) -> Iterator[bool]:
    """Hold the folder's lock; make the folder if it is missing.

    Yields whether the lock is held; it is not where ``done`` holds while another has it.

    Args:
        folder: what to lock.
        timeout: seconds to wait for another holder.
        clock: source of time.
        sleep: waits.
        say: takes progress, a line at a time.
        done: tells whether the other has done the work already.

    Raises:
        EngineError: the folder is not writable, or the other is not done after ``timeout``.
    """
    with _open(folder) as file:
        began = told = clock.monotonic()
        while not _take(file, folder, say):
            if done():
                yield False
                return
            now = clock.monotonic()
            holder = _holder(folder)
            if now - began >= timeout:
                raise EngineError(
                    f"{holder} still works in {folder} after {timeout:g} s (--timeout): see its log"
                )
            if now == began or now - told >= _TELL_EVERY:
                told = now
                size = _size(folder) / 2**30
                say(f"waiting for {holder}, which works in {folder} ({size:.1f} GiB there)")
            sleep(POLL_SECONDS)
        _write_holder(file)
        yield True


def _open(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / LOCK).open("a+b")
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise EngineError(why_not_writable(folder, error)) from error


def why_not_writable(folder: Path, error: OSError) -> str:
    """Say why this process cannot write to ``folder``, and what to do on Kubernetes."""
    existing = next(filter(_is_visible, (folder, *folder.parents)), Path("/"))
    me = f"user {os.geteuid()}:{os.getegid()}"
    if error.errno == errno.EROFS:
        return f"{folder} is mounted read-only: mount it writable in the pod that fetches"
    owner = existing.stat()
    return (
        f"{folder} is not writable for {me}: {existing} belongs to {owner.st_uid}:{owner.st_gid}, "
        f"mode {owner.st_mode & 0o7777:03o}. fsGroup does not apply to a hostPath: make the folder "
        f"on the node with owner {os.geteuid()}:{os.getegid()} (install -d -o {os.geteuid()} "
        f"-g {os.getegid()} FOLDER), or let an init container that runs as root chown it"
    )


def _is_visible(path: Path) -> bool:
    """Tell whether there is such a path; below a folder that may not be searched nothing is."""
    try:
        return path.exists()
    except PermissionError:
        return False


def _take(file: IO[bytes], folder: Path, say: Callable[[str], object]) -> bool:
    """Try to take the lock; where the file system has no locks, continue without one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        say(f"{folder} cannot be locked ({error.strerror}); only one pod at a time may fetch there")
    return True


def _write_holder(file: IO[bytes]) -> None:
    file.truncate(0)
    file.write(f"{socket.gethostname()} (process {os.getpid()})\n".encode())
    file.flush()


def _holder(folder: Path) -> str:
    try:
        return (folder / LOCK).read_text("utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def _size(folder: Path) -> int:
    """Return the bytes of all files under ``folder``; they may change meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118  hot for many files
    return total

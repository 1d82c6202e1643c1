"""A lock on a directory that several pods of a node share: one pod works in it while others wait.

The kernel releases the lock when its holder exits or crashes.
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
"""Lock file in the directory; never deleted, contains the name of the last holder."""
POLL_SECONDS = 2.0
_REPORT_SECONDS = 30.0
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
    """Lock a directory, which is created if missing.

    Yields True if this process holds the lock, False if another process finished the work first.

    Args:
        folder: Directory to lock.
        timeout: Maximum time to wait for another holder, seconds.
        clock: Source of time.
        sleep: Waits for a number of seconds.
        say: Receives lines about the progress.
        done: Returns whether the work is finished.

    Raises:
        EngineError: The directory is not writable, or another holder has not finished within
            ``timeout``.
    """
    with _open(folder) as file:
        began = reported = clock.monotonic()
        while not try_lock(file, folder, say):
            if done():
                yield False
                return
            now = clock.monotonic()
            holder = _holder(folder)
            if now - began >= timeout:
                raise EngineError(
                    f"{holder} is still downloading to {folder} after {timeout:g} s (--timeout): "
                    "see its log"
                )
            if now == began or now - reported >= _REPORT_SECONDS:
                reported = now
                size = _size(folder) / 2**30
                say(
                    f"waiting for {holder}, which is downloading to {folder} "
                    f"({size:.1f} GiB so far)"
                )
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
    """Return the reason why a directory is not writable, and the remedy on Kubernetes."""
    user, group = os.geteuid(), os.getegid()
    existing = next(filter(_is_visible, (folder, *folder.parents)), Path("/"))
    if error.errno == errno.EROFS:
        return f"{folder} is mounted read-only: mount it read-write in the pod that downloads"
    owner = existing.stat()
    return (
        f"{folder} is not writable by user {user}:{group}: {existing} is owned by "
        f"{owner.st_uid}:{owner.st_gid}, mode {owner.st_mode & 0o7777:03o}. fsGroup does "
        "not apply to a hostPath: create the directory on the node with owner "
        f"{user}:{group} (install -d -o {user} -g {group} "
        "FOLDER), or let an init container that runs as root chown it"
    )


def _is_visible(path: Path) -> bool:
    """Return whether a path exists; False below a directory without search permission."""
    try:
        return path.exists()
    except PermissionError:
        return False


def try_lock(file: IO[bytes], folder: Path, say: Callable[[str], object]) -> bool:
    """Try to lock the directory; return True also if the file system does not support locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        say(f"cannot lock {folder} ({error.strerror}): run only one download to it at a time")
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
    """Return the size of all files under a directory, bytes; they may change during the call."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size  # noqa: PTH118  hot for many files
    return total

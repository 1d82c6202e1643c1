"""Temporary folders that a killed process does not leave for good: the next one removes them."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_OWNER = ".owner"
"""A file in the folder, locked as long as the process lives that made it."""

_LOCKED = b"locked"
"""Its content from the moment that it has been locked: before that it says nothing."""


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Make a folder in the system's temporary folder, and remove it in the end.

    Folders of the same prefix whose process is gone, killed before it could remove its own, are
    removed first. A lock tells, not a process id: ids are given again, and a container has its
    own numbers.

    Args:
        prefix: what the name begins with; the prefix of one purpose.

    Raises:
        OSError: the folder cannot be made.
    """
    remove_stale(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with (folder / _OWNER).open("wb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            owner.write(_LOCKED)
            owner.flush()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(prefix: str) -> list[Path]:
    """Remove the folders of ``prefix`` whose process is gone; return them.

    Left alone is what is another user's, and a folder without the file that is locked: it is
    being made, or was not made here.
    """
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError), (folder / _OWNER).open("rb") as owner:
            if folder.stat().st_uid == os.getuid() and not folder.is_symlink() and _free(owner):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder)
    return removed


def _free(owner: IO[bytes]) -> bool:
    if owner.read() != _LOCKED:
        return False
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Temporary directories; those left by a killed process are removed when the next one starts."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_OWNER = ".owner"
"""File in the directory that the owning process keeps locked during its lifetime."""
_LOCKED = b"locked"
"""Content of the owner file once it is locked; without it, the directory is being set up."""


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Create a directory in the system's temporary directory; remove it when the block ends.

    Stale directories with the same prefix, left by killed processes, are removed first. A directory
    is stale if its owner file is not locked. Process ids cannot determine this, because they are
    reused and each container has a separate process id namespace.

    Args:
        prefix: Prefix of the directory's name; use one prefix per purpose.

    Raises:
        OSError: The directory cannot be created.
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
    """Remove the directories with a given prefix whose owner process has ended.

    Keeps directories of other users, and directories without a complete owner file, which are being
    set up or were not created by ``temporary_folder``.

    Returns:
        The removed directories.
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

"""Contents of files: written once as a whole, then read in parts."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from serving.errors import ResourceNotFound, StorageFull

PART_BYTES = 2**20
"""Size of a part when a content is read as a whole, bytes."""
_UNFINISHED = ".part"


class ObjectWriter(Protocol):
    """Writes one content. Calls block, so they are made in threads."""

    def write(self, data: bytes) -> None:
        """Append data.

        Raises:
            StorageFull: The storage has no room, or cannot be written.
        """
        ...

    def commit(self) -> None:
        """Make the content visible as a whole.

        Raises:
            StorageFull: The storage has no room, or cannot be written.
        """
        ...

    def abort(self) -> None:
        """Discard what was written. Never raises; does nothing after ``commit``."""
        ...


class ObjectStore(Protocol):
    """Contents by name. Names consist of letters, digits and hyphens."""

    def create(self, name: str) -> ObjectWriter:
        """Start to write a content.

        Raises:
            StorageFull: The storage cannot be written.
        """
        ...

    def read(self, name: str, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes from the offset ``start``.

        Raises:
            ResourceNotFound: There is no such content.
            StorageFull: The storage cannot be read.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete a content and unfinished parts of it; it need not exist.

        Raises:
            StorageFull: The storage cannot be written.
        """
        ...


def parts_of(store: ObjectStore, name: str) -> Iterator[bytes]:
    """Yield a content in parts of ``PART_BYTES``.

    Raises:
        ResourceNotFound: There is no such content.
        StorageFull: The storage cannot be read.
    """
    start = 0
    while part := store.read(name, start, PART_BYTES):
        yield part
        start += len(part)


class Folder:
    """Contents as files of a folder."""

    def __init__(self, path: Path) -> None:
        """Create the folder if it is missing."""
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path

    def create(self, name: str) -> "FileWriter":
        """Start to write a content; see ``ObjectStore``."""
        return FileWriter(self._path / name)

    def read(self, name: str, start: int, length: int) -> bytes:
        """Return part of a content; see ``ObjectStore``."""
        try:
            with (self._path / name).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError as error:
            raise ResourceNotFound(f"the content of {name} is gone") from error
        except OSError as error:
            raise _failed(error) from error

    def delete(self, name: str) -> None:
        """Delete a content; see ``ObjectStore``."""
        try:
            for path in (self._path / name, self._path / (name + _UNFINISHED)):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _failed(error) from error


class FileWriter:
    """Writes a file under another name until it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_name(path.name + _UNFINISHED)
        try:
            self._file = self._unfinished.open("wb")
        except OSError as error:
            raise _failed(error) from error

    def write(self, data: bytes) -> None:
        """Append data; see ``ObjectWriter``."""
        try:
            self._file.write(data)
        except OSError as error:
            raise _failed(error) from error

    def commit(self) -> None:
        """Write the data to the disk, and rename the file."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._unfinished.replace(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _failed(error) from error

    def abort(self) -> None:
        """Delete the unfinished file."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._unfinished.unlink(missing_ok=True)


def _failed(error: OSError) -> StorageFull:
    return StorageFull(
        f"the storage of files failed ({error.strerror or error}): delete files or free space in "
        "batch.directory, then try again"
    )

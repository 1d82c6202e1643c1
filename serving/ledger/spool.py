"""Records on disk that are not in the database yet.

A record is appended to the newest file (segment) in a single write, before its client sees the end
of the response. If the process is killed, the page cache keeps the record. The writer reads whole
segments and deletes each one after its records are committed. After a crash in between, the next
process inserts them again, which is harmless because of the record ids.

    spool/lock           locked by the router that uses the directory
    spool/00000007.jsonl one record per line
    spool/00000003.bad   lines that could not be inserted, kept for inspection
"""

import contextlib
import fcntl
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from serving.errors import SettingsError

SEGMENT_BYTES = 2**23
"""Size at which a segment is closed, bytes. The writer reads whole segments."""
_SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Segment:
    """A file to which no more records are appended."""

    path: Path
    size: int
    """Size of the file, bytes."""
    since: float
    """Lower bound for the time of its records, monotonic seconds."""

    def lines(self) -> list[bytes]:
        """Return the records as lines, without a record that was truncated by a crash."""
        *whole, _cut = self.path.read_bytes().split(b"\n")
        return whole


class Spool:
    """Appends records and hands over segments; two threads may call ``append`` and ``seal``."""

    def __init__(self, folder: Path, max_bytes: int, now: float) -> None:
        """Lock the directory, and find the segments left by an earlier process.

        Args:
            folder: Directory of the spool; created if missing.
            max_bytes: Maximum size of all segments, bytes.
            now: Monotonic time, seconds.

        Raises:
            SettingsError: The directory cannot be written, or another process uses it.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._guard = threading.Lock()
        self._lock_file = lock_folder(folder, "ledger.directory")
        # Other files, such as copies made by an administrator, are ignored.
        found = sorted(each for each in folder.glob(f"*{_SUFFIX}") if each.stem.isdecimal())
        self._sealed = [Segment(path, path.stat().st_size, now) for path in found]
        used = [*found, *(each for each in folder.glob("*.bad") if each.stem.isdecimal())]
        self._number = max((int(path.stem) for path in used), default=0) + 1
        self._sealed_bytes = sum(segment.size for segment in self._sealed)
        self._descriptor: int | None = None
        self._size = 0
        self._since = now

    @property
    def size(self) -> int:
        """Size of all segments, bytes."""
        return self._sealed_bytes + self._size

    @property
    def oldest_since(self) -> float | None:
        """``Segment.since`` of the oldest segment with records, or None without records."""
        with self._guard:
            if self._sealed:
                return self._sealed[0].since
            return self._since if self._size else None

    def append(self, line: bytes, now: float) -> None:
        """Write a record, which then survives the end of this process, but not a power failure.

        Args:
            line: The record, ending with a line break.
            now: Monotonic time, seconds.

        Raises:
            OSError: The disk is full, or the spool has reached its maximum size. Nothing is
                written.
        """
        with self._guard:
            if self.size + len(line) > self._max_bytes:
                raise OSError(f"the spool holds {self.size} bytes (ledger.max_spool_bytes)")
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._descriptor = os.open(self._active(), flags, 0o600)
                self._since = now
            written = os.write(self._descriptor, line)
            if written < len(line):
                # The disk is full. A partial record would corrupt the next one.
                os.ftruncate(self._descriptor, self._size)
                raise OSError(f"only {written} of {len(line)} bytes could be written")
            self._size += written
            if self._size >= SEGMENT_BYTES:
                self._close_segment()

    def seal(self) -> list[Segment]:
        """Start a new segment if the newest one has records; return all others, oldest first."""
        with self._guard:
            if self._size:
                self._close_segment()
            return list(self._sealed)

    def remove(self, segment: Segment) -> None:
        """Delete a segment whose records are in the database.

        Raises:
            OSError: The file cannot be deleted; the segment stays in the list.
        """
        segment.path.unlink(missing_ok=True)
        with self._guard:
            self._sealed.remove(segment)
            self._sealed_bytes -= segment.size

    def keep_bad(self, segment: Segment, lines: list[bytes]) -> None:
        """Move lines that cannot be inserted to a separate file.

        Raises:
            OSError: The file cannot be written.
        """
        segment.path.with_suffix(".bad").write_bytes(b"\n".join(lines) + b"\n")

    def close(self) -> None:
        """Close the files and release the directory; the records stay."""
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
            os.close(self._lock_file)

    def _close_segment(self) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None
        self._sealed.append(Segment(self._active(), self._size, self._since))
        self._sealed_bytes += self._size
        self._size = 0
        self._number += 1

    def _active(self) -> Path:
        return self._folder / f"{self._number:08}{_SUFFIX}"


def lock_folder(folder: Path, setting: str) -> int:
    """Create and lock a directory; return the lock's descriptor. Closing it releases the lock.

    Raises:
        SettingsError: The directory cannot be written, or another process uses it; the message
            names ``setting``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"{setting}: cannot write {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise SettingsError(
            f"{setting}: another router uses {folder}; give each router its own directory"
        ) from error
    return descriptor

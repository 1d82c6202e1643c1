"""Values that are loaded from files and reloaded when a file changes.

Changes are detected by polling: modification time, size and inode of each file are compared with
those at the last load. Symbolic links are followed, because Kubernetes updates a mounted Secret by
replacing a link.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog

from serving.errors import SettingsError

ValueT = TypeVar("ValueT")

_State = tuple[tuple[int, int, int] | None, ...]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Refreshable(Protocol):
    """A value that can be reloaded."""

    def refresh(self) -> bool:
        """Reload the value if a file has changed; return whether there is a new value."""
        ...


class Watched(Generic[ValueT]):
    """A value loaded from files; after a failed reload, the last valid value stays in effect."""

    def __init__(self, what: str, paths: Sequence[str | None], load: Callable[[], ValueT]) -> None:
        """Load the value for the first time.

        Args:
            what: Name in log lines.
            paths: The files that ``load`` reads; None entries are ignored.
            load: Returns the value, or raises SettingsError if the files are invalid.

        Raises:
            SettingsError: The files are invalid.
        """
        self._what = what
        self._paths = tuple(Path(path) for path in paths if path is not None)
        self._load = load
        self._state = self._current_state()
        self._value = load()
        self._version = 1

    @property
    def value(self) -> ValueT:
        """The last successfully loaded value."""
        return self._value

    @property
    def version(self) -> int:
        """Number of successful loads; starts at 1."""
        return self._version

    def refresh(self) -> bool:
        """Reload the value if a file has changed; never raises an exception.

        Returns:
            Whether there is a new value.
        """
        # Read before the load, so that a change during the load is detected at the next refresh.
        now = self._current_state()
        if now == self._state:
            return False
        self._state = now
        try:
            value = self._load()
        except SettingsError as error:
            log.error("changed files cannot be used", what=self._what, reason=str(error))  # noqa: TRY400
            return False
        except Exception:
            # An exception here would stop the polling of all files.
            log.exception("changed files cannot be used", what=self._what)
            return False
        # In this order, so that another thread that reads the new version also gets the new value.
        self._value = value
        self._version += 1
        log.info("changed files are in force", what=self._what)
        return True

    def _current_state(self) -> _State:
        return tuple(_state(path) for path in self._paths)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


async def keep_fresh(watched: Sequence[Refreshable], interval: float) -> None:
    """Refresh values in a thread every ``interval`` seconds, until cancelled."""
    while True:
        await asyncio.sleep(interval)
        for item in watched:
            await asyncio.to_thread(item.refresh)


def read_text(path: str, what: str) -> str:
    """Return the content of a UTF-8 file.

    Args:
        path: The file.
        what: Description of the content, for the error message.

    Raises:
        SettingsError: The file cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"cannot read {what} {path}: not UTF-8 text") from error

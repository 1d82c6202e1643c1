"""What is made of files, and made anew when one of them changes.

The files are looked at from time to time: their state (time, size, inode; links are followed,
as Kubernetes swaps those of mounted secrets) is compared with what it was at the last load.
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
    """Something that can look whether it is out of date."""

    def refresh(self) -> bool:
        """Load again if a file has changed; tell whether there is a new value."""
        ...


class Watched(Generic[ValueT]):
    """A value loaded from files; a load that fails leaves the last good value in force."""

    def __init__(self, what: str, paths: Sequence[str | None], load: Callable[[], ValueT]) -> None:
        """Load for the first time.

        Args:
            what: stands in log lines.
            paths: the files that ``load`` reads; none among them are left out.
            load: raises SettingsError when the files cannot be used.

        Raises:
            SettingsError: they cannot be used now.
        """
        self._what = what
        self._paths = tuple(Path(path) for path in paths if path is not None)
        self._load = load
        self._seen = self._look()
        self._value = load()
        self._version = 1

    @property
    def value(self) -> ValueT:
        """The last value that could be loaded."""
        return self._value

    @property
    def version(self) -> int:
        """Counts the values, from 1."""
        return self._version

    def refresh(self) -> bool:
        """Load again if a file has changed; tell whether there is a new value. Never raises."""
        # Looked at before the load: a change in the middle of it is seen at the next refresh.
        now = self._look()
        if now == self._seen:
            return False
        self._seen = now
        try:
            value = self._load()
        except SettingsError as error:
            log.error("changed files cannot be used", what=self._what, reason=str(error))  # noqa: TRY400
            return False
        except Exception:
            # Else no file would be looked at any more.
            log.exception("changed files cannot be used", what=self._what)
            return False
        # In this order: who sees the new version gets the new value.
        self._value = value
        self._version += 1
        log.info("changed files are in force", what=self._what)
        return True

    def _look(self) -> _State:
        return tuple(_state(path) for path in self._paths)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


async def keep_fresh(watched: Sequence[Refreshable], interval: float) -> None:
    """Look for changes every ``interval`` seconds, for ever; beside the event loop."""
    while True:
        await asyncio.sleep(interval)
        for item in watched:
            await asyncio.to_thread(item.refresh)


def read_text(path: str, what: str) -> str:
    """Return the text of a file.

    Raises:
        SettingsError: it cannot be read; the message says which and why.
    """
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"cannot read {what} {path}: it is not UTF-8 text") from error

"""Notices a client that does not take what it is sent."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self


class WriteWatch:
    """Calls ``give_up`` once when one write takes longer than ``timeout`` seconds.

    A timer that looks back, as in ``keepalive``: a write costs a clock reading, not a timer.
    """

    __slots__ = ("_give_up", "_loop", "_since", "_timeout", "_timer")

    def __init__(self, timeout: float, give_up: Callable[[], object]) -> None:
        self._timeout = timeout
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._timer = self._loop.call_later(self._timeout, self._look)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def writing(self) -> None:
        """Note that a write begins."""
        self._since = self._loop.time()

    def written(self) -> None:
        """Note that it is out."""
        self._since = None

    def _look(self) -> None:
        now = self._loop.time()
        left = self._timeout if self._since is None else self._since + self._timeout - now
        if left <= 0:
            self._timer = None
            self._give_up()
        else:
            self._timer = self._loop.call_later(left, self._look)

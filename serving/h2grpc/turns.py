"""Shares the event loop's turns among connections that have something to read.

What one client sends in one write may take seconds to look at. A connection therefore reads a
slice at a time; what is left waits until others, and all other work of the loop, had their turn.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

SLICE = 1e-3
"""Seconds that a connection reads at a time; what is begun, such as a frame, is ended."""
TURN = 3e-3
"""Seconds that all connections together read in one turn of the event loop."""


class Reader(Protocol):
    """A connection with bytes that it has not looked at."""

    def read_on(self, until: float) -> bool:
        """Look at some, at least one piece, until the clock shows ``until``.

        Returns:
            Whether there is more.
        """


class Turns:
    """Serves the readers of one server."""

    __slots__ = ("_at", "_known", "_newcomers", "_others", "_scheduled", "_spent", "clock")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._spent = 0.0
        """Seconds that were read at once, less those that have passed since."""
        self._at = 0.0
        self._known: set[Reader] = set()
        """Who waits in one of these:"""
        self._newcomers: deque[Reader] = deque()
        self._others: deque[Reader] = deque()
        """Those that have had a slice, and have more than that."""
        self._scheduled = False

    def __contains__(self, reader: Reader) -> bool:
        """Whether a reader waits for its turn."""
        return reader in self._known

    def arrived(self, reader: Reader) -> bool:
        """Serve a reader for which something came; whether it has more, and waits.

        At once if reading has not had its share of the time lately: half of it.
        """
        if reader in self._known:
            return True
        clock = self.clock
        began = clock()
        self._spent = max(self._spent - (began - self._at), 0.0)
        self._at = began
        if self._spent >= TURN:
            self._queue(reader, self._newcomers)
            return True
        more = reader.read_on(began + SLICE)
        self._at = ended = clock()
        self._spent += ended - began
        if more:
            self._queue(reader, self._others)
        return more

    def wait(self, reader: Reader) -> None:
        """Serve a reader in one of the next turns."""
        if reader not in self._known:
            self._queue(reader, self._newcomers)

    def _queue(self, reader: Reader, waiting: deque[Reader]) -> None:
        self._known.add(reader)
        waiting.append(reader)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Serve one that has had a slice already, then those that have not, then the others.

        Each once, and no more than there is time for.
        """
        began = now = self.clock()
        until = began + TURN
        waiting = self._others or self._newcomers
        try:
            for _ in range(len(self._others) + len(self._newcomers)):
                reader = waiting.popleft()
                self._known.discard(reader)
                if reader.read_on(min(now + SLICE, until)):
                    self._queue(reader, self._others)
                now = self.clock()
                if now >= until:
                    break
                waiting = self._newcomers or self._others
        finally:
            self._again(now - began)

    def _again(self, took: float) -> None:
        self._scheduled = bool(self._newcomers or self._others)
        if not self._scheduled:
            return
        loop = asyncio.get_running_loop()
        if took > 2 * TURN:
            # One piece was that long: all else gets as much time before the next.
            loop.call_later(took, self._turn)
        else:
            loop.call_soon(self._turn)

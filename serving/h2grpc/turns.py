"""Shares the event loop fairly among connections with unread data and tasks with long steps.

Data that a client sends in one write can take seconds to process. A connection therefore reads one
time slice at a time and then yields to other connections and to the rest of the event loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

SLICE = 1e-3
"""Length of a connection's time slice, seconds; the last frame may exceed it."""
TURN = 3e-3
"""Maximum reading time of all connections per event-loop iteration, seconds."""


class Reader(Protocol):
    """A connection with unread data."""

    def read_until(self, until: float) -> bool:
        """Read at least one piece, and continue until the clock reaches ``until``.

        Returns:
            Whether unread data is left.
        """


class Turns:
    """Schedules the readers of one server."""

    __slots__ = ("_at", "_continued", "_new", "_queued", "_scheduled", "_spent", "clock")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._spent = 0.0
        """Time spent reading in ``arrived``, less the time elapsed since, seconds."""
        self._at = 0.0
        self._queued: set[Reader] = set()
        """Readers in the queues below."""
        self._new: deque[Reader] = deque()
        self._continued: deque[Reader] = deque()
        """Readers that have had a slice and still have unread data."""
        self._scheduled = False

    def __contains__(self, reader: Reader) -> bool:
        """Return whether a reader is queued."""
        return reader in self._queued

    def arrived(self, reader: Reader) -> bool:
        """Let a reader read immediately, or queue it if reading recently took half of the time.

        Returns:
            Whether the reader is queued to read more.
        """
        if reader in self._queued:
            return True
        clock = self.clock
        began = clock()
        self._spent = max(self._spent - (began - self._at), 0.0)
        self._at = began
        if self._spent >= TURN:
            self._queue(reader, self._new)
            return True
        more = reader.read_until(began + SLICE)
        self._at = ended = clock()
        self._spent += ended - began
        if more:
            self._queue(reader, self._continued)
        return more

    def wait(self, reader: Reader) -> None:
        """Queue a reader, if it is not queued yet."""
        if reader not in self._queued:
            self._queue(reader, self._new)

    def _queue(self, reader: Reader, waiting: deque[Reader]) -> None:
        self._queued.add(reader)
        waiting.append(reader)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Give queued readers one slice each, until ``TURN`` has passed.

        One reader that has had a slice comes first, then those that have had none, then the others.
        """
        began = now = self.clock()
        until = began + TURN
        waiting = self._continued or self._new
        try:
            for _ in range(len(self._continued) + len(self._new)):
                reader = waiting.popleft()
                self._queued.discard(reader)
                if reader.read_until(min(now + SLICE, until)):
                    self._queue(reader, self._continued)
                now = self.clock()
                if now >= until:
                    break
                waiting = self._new or self._continued
        finally:
            self._reschedule(now - began)

    def _reschedule(self, took: float) -> None:
        self._scheduled = bool(self._new or self._continued)
        if not self._scheduled:
            return
        loop = asyncio.get_running_loop()
        if took > 2 * TURN:
            # One piece took much longer than its slice. Give the rest of the loop as much time.
            loop.call_later(took, self._turn)
        else:
            loop.call_soon(self._turn)


class IterationLimit:
    """A limit on operations per event-loop iteration, shared by all connections."""

    __slots__ = ("_left", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = self._left = limit

    def take(self, wanted: int) -> int:
        """Return how many of the wanted operations are allowed in this iteration."""
        if self._left == self.limit:
            asyncio.get_running_loop().call_soon(self._renew)
        granted = min(wanted, self._left)
        self._left -= granted
        return granted

    def _renew(self) -> None:
        self._left = self.limit


class TaskTurns:
    """Runs long steps of tasks one per event-loop iteration.

    Otherwise tasks that become ready together would all run their steps, several milliseconds each,
    in the same iteration.
    """

    __slots__ = ("_clock", "_released_at", "_scheduled", "_waiting")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False
        self._released_at: float | None = None
        """Time at which the task of the current step was released. None if no step is running."""

    async def turn(self) -> None:
        """Wait for the task's turn, which lasts until its next await."""
        loop = asyncio.get_running_loop()
        released = loop.create_future()
        self._waiting.append(released)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._release)
        await released

    def _release(self) -> None:
        """Release the next task, after an equally long pause if the last step exceeded ``TURN``."""
        now = self._clock()
        released_at, self._released_at = self._released_at, None
        loop = asyncio.get_running_loop()
        if released_at is not None and now - released_at > TURN:
            loop.call_later(now - released_at, self._release)
            return
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():  # otherwise its task was cancelled
                first.set_result(None)
                self._released_at = now
                loop.call_soon(self._release)
                return
        self._scheduled = False

"""Comments in an event stream that has nothing to say, so that proxies keep the connection.

A request may wait for its turn, for a group, or for its continuation on another group, for
longer than a proxy bears silence. Lines that begin with a colon are comments in server-sent
events; every client skips them.
"""

import asyncio
from collections.abc import Awaitable, Callable

COMMENT = b": waiting\n"
"""One line end: with two, some decoders take the comment for an event without data."""


class KeepAlive:
    """Calls ``speak`` whenever a stream was silent for ``interval`` seconds.

    A timer that looks back, not a task: a stream that is never silent pays for one timer an
    interval and nothing for each token.
    """

    def __init__(self, interval: float, speak: Callable[[], Awaitable[None]]) -> None:
        self._interval = interval
        self._speak = speak
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._speaking: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(interval, self._look)

    def heard(self) -> None:
        """Note that something went out."""
        self._heard_at = self._loop.time()

    def stop(self) -> None:
        """Be silent from here on. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._speaking is not None:
            self._speaking.cancel()

    def _look(self) -> None:
        due_in = self._heard_at + self._interval - self._loop.time()
        if due_in <= 0:
            due_in = self._interval
            # One that is still at it waits for a client who does not read.
            if self._speaking is None or self._speaking.done():
                self._speaking = asyncio.ensure_future(self._speak())
        self._timer = self._loop.call_later(due_in, self._look)

"""Decides when a comment is sent in an idle event stream."""

import asyncio
from collections.abc import Awaitable, Callable


class KeepAlive:
    """Calls ``send_comment`` whenever nothing has been sent for ``interval`` seconds.

    A request can wait in the queue, for a group, or for its resumption longer than a proxy keeps an
    idle connection open. A single timer checks the time of the last event, so sending an event does
    not reset a timer.
    """

    def __init__(
        self,
        interval: float,
        send_comment: Callable[[], Awaitable[None]],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Start the timer.

        Args:
            interval: Maximum idle time, seconds.
            send_comment: Sends a comment.
            loop: Event loop for time and timers; the running loop by default.
        """
        self._interval = interval
        self._send_comment = send_comment
        self._loop = loop or asyncio.get_running_loop()
        self._last_sent = self._loop.time()
        self._comment_task: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(interval, self._check)

    def data_sent(self) -> None:
        """Record that data was sent."""
        self._last_sent = self._loop.time()

    def stop(self) -> None:
        """Stop calling ``send_comment``. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._comment_task is not None:
            self._comment_task.cancel()

    def _check(self) -> None:
        due_in = self._last_sent + self._interval - self._loop.time()
        if due_in <= 0:
            due_in = self._interval
            # A call still running is waiting for a client that does not read.
            if self._comment_task is None or self._comment_task.done():
                self._comment_task = asyncio.ensure_future(self._send_comment())
        self._timer = self._loop.call_later(due_in, self._check)

"""Detects dead clients: pings idle ones and closes the connection if no answer arrives."""

import asyncio
from collections.abc import Callable

_STALL = 1.0
"""Timer delay above which the event loop, not the client, is taken as stalled, seconds."""


class Keepalive:
    """Watches one connection."""

    def __init__(
        self,
        interval: float,
        timeout: float,
        *,
        ping: Callable[[], None],
        dead: Callable[[float], None],
        busy: Callable[[], bool],
    ) -> None:
        """Initialize; ``start`` begins watching.

        Args:
            interval: idle time after which the client is pinged, seconds.
            timeout: time for the client to answer, seconds.
            ping: sends a PING.
            dead: called with the idle time in seconds if the client does not answer.
            busy: returns whether reading from the client is paused, in which case idle time is
                meaningless.
        """
        self._loop = asyncio.get_running_loop()
        self._interval = interval
        self._timeout = timeout
        self._ping = ping
        self._dead = dead
        self._busy = busy
        self.heard_at = self._loop.time()
        """Loop time of the last data from the client, seconds."""
        self.pinged = False
        """Whether a PING has been sent since ``heard_at``."""
        self.due = 0.0
        """Loop time of the next check, seconds."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start watching."""
        self._check_in(self._interval)

    def stop(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()

    def check(self) -> None:
        """Ping the client, or report it as dead, if it has been idle for too long."""
        now = self._loop.time()
        silent = now - self.heard_at
        if now - self.due > _STALL or self._busy():
            # Data from the client may still be in the socket.
            self._check_in(_STALL)
            return
        if self.pinged and silent >= self._interval + self._timeout:
            self._dead(silent)
            return
        if silent >= self._interval and not self.pinged:
            self.pinged = True
            self._ping()
        due = self._interval + (self._timeout if self.pinged else 0) - silent
        self._check_in(max(due, 0.01))

    def _check_in(self, seconds: float) -> None:
        self.due = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self.check)

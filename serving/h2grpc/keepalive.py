"""Detects dead peers: pings idle ones and closes the connection if no answer arrives."""

import asyncio
from collections.abc import Callable

_MAX_DELAY = 1.0
"""Timer delay above which the event loop, not the peer, is considered stalled, seconds."""


class Keepalive:
    """Watches one connection."""

    def __init__(
        self,
        interval: float,
        timeout: float,
        *,
        ping: Callable[[], None],
        on_dead: Callable[[float], None],
        busy: Callable[[], bool],
    ) -> None:
        """Initialize; ``start`` begins watching.

        Args:
            interval: Idle time after which the peer is pinged, seconds.
            timeout: Time for the peer to answer, seconds.
            ping: Sends a PING.
            on_dead: Called with the idle time in seconds if the peer does not answer.
            busy: Returns whether reading from the peer is paused, in which case idle time is
                meaningless.
        """
        self._loop = asyncio.get_running_loop()
        self._interval = interval
        self._timeout = timeout
        self._ping = ping
        self._on_dead = on_dead
        self._busy = busy
        self.last_received = self._loop.time()
        """Loop time of the last data from the peer, seconds."""
        self.pinged = False
        """Whether a PING has been sent since ``last_received``."""
        self.due = 0.0
        """Loop time of the next check, seconds."""
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start watching."""
        self._schedule_check(self._interval)

    def stop(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()

    def check(self) -> None:
        """Ping the peer, or report it as dead, if it has been idle for too long."""
        now = self._loop.time()
        idle = now - self.last_received
        if now - self.due > _MAX_DELAY or self._busy():
            # Data from the peer may still be in the socket.
            self._schedule_check(_MAX_DELAY)
            return
        if self.pinged and idle >= self._interval + self._timeout:
            self._on_dead(idle)
            return
        if idle >= self._interval and not self.pinged:
            self.pinged = True
            self._ping()
        due = self._interval + (self._timeout if self.pinged else 0) - idle
        self._schedule_check(max(due, 0.01))

    def _schedule_check(self, seconds: float) -> None:
        self.due = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self.check)

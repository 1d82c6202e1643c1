"""How often a process that dies may be started anew."""

from collections import deque

MOST, WITHIN = 3, 60.0
"""Starts, and the seconds in which they count: what dies at once each time is left alone."""


class Restarts:
    """Counts the restarts of one process."""

    def __init__(self, most: int = MOST, within: float = WITHIN) -> None:
        self._most = most
        self._within = within
        self._at: deque[float] = deque()

    def allowed(self, now: float) -> bool:
        """Count one more, if it may be; ``now`` in seconds on a clock that goes on evenly."""
        while self._at and self._at[0] <= now - self._within:
            self._at.popleft()
        if len(self._at) >= self._most:
            return False
        self._at.append(now)
        return True

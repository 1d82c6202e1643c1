"""Limits on useless frames per connection and on incomplete requests across all connections.

HTTP/2 allows a client to send any number of frames that the server must process or answer: PING,
SETTINGS, PRIORITY, empty DATA, calls to unknown methods. Each such frame costs one unit of the
connection's budget, which is refilled over time and by sent messages. A connection that overdraws
its budget is closed (RFC 9113, section 10.5).
"""

MAX_UNITS = 2048
"""Initial and maximum budget of a connection, units."""
REFILL_PER_SECOND = 256
"""Number of units refilled per second."""
REFILL_PER_MESSAGE = 2
"""Number of units refilled per DATA frame sent, because clients answer with WINDOW_UPDATE and
PING."""
UNSERVED_COST = 3
"""Additional cost of a call that ends before its handler receives the request, units: an unknown
method, no message, or not gRPC."""
FREE_BYTES = 256
"""Minimum size of a DATA frame that is free even if it completes no message, bytes."""
MAX_PENDING_BYTES = 2**28
"""Default limit for ``PendingBytes``, bytes."""


class PendingBytes:
    """Total size of incomplete requests across all connections of a server.

    Limits per request and per connection do not suffice, because they add up with thousands of slow
    clients.
    """

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def take(self, size: int) -> bool:
        """Add received bytes, unless the total would exceed the limit.

        Returns:
            Whether the bytes were added. If False, the request must be rejected.
        """
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        """Subtract bytes of a request that is complete or has ended."""
        self.used -= size


class Budget:
    """The budget of one connection."""

    __slots__ = ("_at", "left", "messages")

    def __init__(self, now: float) -> None:
        self.left = MAX_UNITS
        """Units left before the refill. If negative, call ``overdrawn``."""
        self.messages = 0
        """Number of DATA frames sent since the last refill."""
        self._at = now

    def overdrawn(self, now: float) -> bool:
        """Refill the budget and return whether it is still negative."""
        if self.left >= 0:
            return False
        filled = int((now - self._at) * REFILL_PER_SECOND) + self.messages * REFILL_PER_MESSAGE
        if filled > 0:
            self.left = min(self.left + filled, MAX_UNITS)
            self.messages = 0
            self._at = now
        return self.left < 0

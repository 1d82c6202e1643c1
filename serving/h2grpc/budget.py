"""What a client may cost with frames that are of no use to it.

HTTP/2 lets a client send without end what a server has to look at or to answer: PING, SETTINGS,
PRIORITY, empty DATA, calls that nobody serves. Each such frame takes from a budget that time and
use fill again; whoever overdraws it is hung up on (RFC 9113, section 10.5).
"""

MOST = 2048
"""Units that a connection has at first, and at most."""
A_SECOND = 256
"""Units that come back in a second."""
A_MESSAGE = 2
"""And for each DATA frame that is sent: clients answer those with WINDOW_UPDATE, some with PING."""
UNSERVED = 3
"""Units that a call takes beside its frames that ends before a handler has its request: one for
a method that is not there, without a message, or not of gRPC."""
WORTH = 256
"""Bytes from which a DATA frame costs nothing, also if no message is complete with it."""


class Budget:
    """One connection's."""

    __slots__ = ("_at", "left", "messages")

    def __init__(self, now: float) -> None:
        self.left = MOST
        """Units; whoever sees it below zero asks whether it is ``overdrawn``."""
        self.messages = 0
        """DATA frames that were sent since it was filled."""
        self._at = now

    def overdrawn(self, now: float) -> bool:
        """Whether it is used up, with what time and messages have filled."""
        if self.left >= 0:
            return False
        filled = int((now - self._at) * A_SECOND) + self.messages * A_MESSAGE
        if filled > 0:
            self.left = min(self.left + filled, MOST)
            self.messages = 0
            self._at = now
        return self.left < 0

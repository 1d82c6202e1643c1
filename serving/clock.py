"""Clocks, passed to the code that uses them so that tests and the simulator can control time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Source of time."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary start; never decreases."""
        ...

    def time(self) -> float:
        """Return seconds since the Unix epoch, for logs and expiry dates, not for durations."""
        ...


class SystemClock:
    """The machine's clock; its methods are the functions of ``time``, without an extra call."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

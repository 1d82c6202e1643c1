"""Clocks, passed to the code that uses them so that tests and the simulator can control time."""

import datetime as dt
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
    """The machine's clock; its methods are the functions of ``time`` themselves, to save a call."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


def rfc3339(seconds: int) -> str:
    """Return a Unix time as text, e.g. 2026-12-01T00:00:00Z."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

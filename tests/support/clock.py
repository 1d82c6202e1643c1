"""Clocks for tests: time advances only when a test sets it."""


class ManualClock:
    """A clock that does not advance until a test sets it (``clock.now += 5``).

    Implements ``serving.clock.Clock``; both of its times are ``now``, in seconds.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class SteppingClock(ManualClock):
    """A clock that advances by ``step`` seconds with each reading."""

    def __init__(self, now: float = 0.0, *, step: float = 1.0) -> None:
        super().__init__(now)
        self.step = step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now

    def time(self) -> float:
        return self.monotonic()

"""An event loop whose clock jumps to the next timer, so that hours pass in seconds."""

import asyncio
import selectors


class _Selector(selectors.DefaultSelector):
    """Never waits: the loop's clock moves on instead."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if not found and timeout:
            self.now += timeout
        return found


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop for code that only waits for timers and other tasks."""

    def __init__(self):
        self._virtual = _Selector()
        super().__init__(self._virtual)
        # A timer that is due within the resolution runs at once, at its own time.
        self._clock_resolution = 1e-9

    def time(self):
        return self._virtual.now

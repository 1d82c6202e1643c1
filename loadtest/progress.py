"""Progress of a run: one line that is updated in place, on terminals only."""

import asyncio
from collections import deque
from typing import TextIO

from loadtest.generator import Generator
from loadtest.record import Record
from loadtest.report import milliseconds
from loadtest.statistics import Quantiles

_WINDOW = 10.0
_REFRESH = 0.25


class Progress:
    """Counts requests as they end, and prints a line about them."""

    def __init__(self, generator: Generator, out: TextIO) -> None:
        self.stage = ""
        self._generator = generator
        self._out = out
        self._recent: deque[Record] = deque()
        self._ok = self._failed = 0
        generator.listeners.append(self._note)

    def _note(self, record: Record) -> None:
        self._ok += record.ok
        self._failed += not record.ok
        self._recent.append(record)

    def line(self) -> str:
        """Return the state of the last 10 seconds as one line."""
        now = self._generator.now
        while self._recent and self._recent[0].end < now - _WINDOW:
            self._recent.popleft()
        done = [record for record in self._recent if record.ok]
        ttft = Quantiles.of([record.ttft for record in done if record.ttft is not None])
        tokens = sum(record.output_tokens for record in done) / min(_WINDOW, max(now, 1.0))
        return (
            f"{now:6.1f} s  {self.stage}  {self._generator.inflight} in flight  {self._ok} done"
            + (f"  {self._failed} failed" if self._failed else "")
            + f"  {tokens:.0f} tok/s  TTFT p50 {milliseconds(ttft.p50)} p99 "
            f"{milliseconds(ttft.p99)} ms"
        )

    async def show(self) -> None:
        """Update the line until cancelled; return at once if the output is not a terminal."""
        if not self._out.isatty():
            return
        try:
            while True:
                self._out.write(f"\r\x1b[2K{self.line()}")
                self._out.flush()
                await asyncio.sleep(_REFRESH)
        finally:
            self._out.write("\r\x1b[2K")
            self._out.flush()

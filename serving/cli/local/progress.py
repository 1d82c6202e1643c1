"""Progress of the start: a live table on a terminal, elsewhere one line per change."""

import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from serving.clock import Clock, SystemClock


class Progress(Protocol):
    """Shows what each part of the start is doing."""

    def set(self, part: str, text: str, *, done: bool = False) -> None:
        """Show ``text`` for ``part``; no effect if already shown."""
        ...

    def drop(self, part: str) -> None:
        """Remove a part that will not finish, e.g. a rank of a gang that was restarted."""
        ...

    def __enter__(self) -> Self:
        """Start showing progress."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the terminal."""
        ...


def make_progress(out: TextIO | None = None, clock: Clock | None = None) -> Progress:
    """Return the progress display that fits ``out`` (stderr by default)."""
    stream = sys.stderr if out is None else out
    used = SystemClock() if clock is None else clock
    if stream.isatty():
        return LiveProgress(Console(file=stream), used)
    return LineProgress(stream, used)


@dataclass(slots=True)
class _Part:
    text: str
    done: bool


class LineProgress:
    """One line per change of a part, for logs and pipes."""

    def __init__(self, out: TextIO, clock: Clock) -> None:
        self._out = out
        self._clock = clock
        self._began = clock.monotonic()
        self._parts: dict[str, _Part] = {}

    def set(self, part: str, text: str, *, done: bool = False) -> None:
        """Print a line unless it repeats the part's last line."""
        fresh = _Part(text, done)
        if self._parts.get(part) == fresh:
            return
        self._parts[part] = fresh
        seconds = self._clock.monotonic() - self._began
        self._out.write(f"[{seconds:5.1f}s] {part}: {text}\n")
        self._out.flush()

    def drop(self, part: str) -> None:
        """Remove the part."""
        self._parts.pop(part, None)

    def __enter__(self) -> Self:
        """Start showing progress."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing."""


class LiveProgress:
    """One line for each part, updated in place."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._clock = clock
        self._began = clock.monotonic()
        self._parts: dict[str, _Part] = {}
        self._spinners: dict[str, Spinner] = {}
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=8, transient=False
        )

    def set(self, part: str, text: str, *, done: bool = False) -> None:
        """Update the part's line."""
        self._parts[part] = _Part(text, done)

    def drop(self, part: str) -> None:
        """Remove the part's line."""
        self._parts.pop(part, None)
        self._spinners.pop(part, None)

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Draw once more and stop."""
        self._live.stop()

    def _render(self) -> Group:
        rows: list[Text | Spinner] = []
        for name, part in tuple(self._parts.items()):
            if part.done:
                rows.append(Text.assemble(("✓ ", "green"), (name, "bold"), f"  {part.text}"))
            else:
                spinner = self._spinners.setdefault(name, Spinner("dots"))
                spinner.update(text=Text.assemble((name, "bold"), f"  {part.text}"))
                rows.append(spinner)
        if not all(part.done for part in self._parts.values()):
            seconds = self._clock.monotonic() - self._began
            rows.append(Text(f"{seconds:.0f} s", style="dim"))
        return Group(*rows)

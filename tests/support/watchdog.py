"""Finds turns of an event loop that use too much CPU time.

    with Watchdog() as dog:  # of the running loop
        ...
    dog.check()

Only the CPU time of the loop's thread counts, so a busy machine and waits for the network do not
matter. A second thread samples the loop's stack every few milliseconds during a turn. The innermost
frame in ``serving/`` or ``tests/`` shows whether the server uses the time, because clients often
share its loop in tests. The garbage collector's time is separate, because a test process has many
objects that a server does not have.
"""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self

LIMIT = 0.05
"""Maximum CPU time of one turn, seconds."""
CROWDED = 0.25
"""The same if other tests share caches and cores, seconds: a turn then takes several times as long,
and only a turn that freezes a router is significant."""
_LOOK = 0.004
"""Seconds between two samples of the stack."""
_WORTH_A_LOOK = 0.01
_MOST = 50
"""Number of turns to keep; all are counted."""
_DEPTH = 14
"""Number of innermost frames to print of a stack."""

_ROOT = Path(__file__).resolve().parents[2]
_SERVING, _TESTS = f"{_ROOT}/serving/", f"{_ROOT}/tests/"
_FAKES = f"{_ROOT}/serving/engine/fake"
_SERVER_LIBRARIES = tuple(
    f"/site-packages/{name}/" for name in ("vllm", "uvicorn", "fastapi", "starlette")
)


@dataclass(slots=True)
class Turn:
    """One turn that took too long."""

    cpu: float
    """CPU time of the thread, including the garbage collector, seconds."""
    ours: float
    """Part of it in the server's code, seconds."""
    collecting: float
    """Part of it in the garbage collector, seconds."""
    stacks: dict[str, float] = field(default_factory=dict)
    """Sampled stacks, with their seconds."""

    def __str__(self) -> str:
        head = (
            f"a turn of {self.cpu * 1e3:.0f} ms CPU, {self.ours * 1e3:.0f} ms of it ours, "
            f"{self.collecting * 1e3:.0f} ms the collector's"
        )
        most = sorted(self.stacks.items(), key=lambda item: -item[1])[:4]
        seen = (f"-- {took * 1e3:.0f} ms in:\n{stack}" for stack, took in most)
        return "\n".join((head, *seen))


class Watchdog:
    """Watches one event loop, as a context manager.

    An asyncio loop is measured turn by turn. In another loop (uvloop), a timer of a few
    milliseconds measures the turn during which it expires.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        limit: float = LIMIT,
        all_ours: bool = False,
        collector: bool = False,
    ) -> None:
        """Set up; watching begins on entry.

        Args:
            loop: loop to watch; the running loop by default. Its thread must be the entering one.
            limit: maximum CPU time of the server's code in one turn, seconds.
            all_ours: count all code as the server's, as in a separate server process.
            collector: count the time of the garbage collector.
        """
        self.loop = loop or asyncio.get_running_loop()
        self.limit = limit
        self.turns = 0
        """Number of measured turns or timers."""
        self.worst = 0.0
        """CPU time of the longest turn, in any code, seconds."""
        self.count = 0
        """Number of turns over the limit."""
        self.faults: list[Turn] = []
        """The first of them."""
        self._all_ours = all_ours
        self._collector = collector
        self._thread = 0
        self._clock = 0
        self._began: float | None = None
        self._last_look = 0.0
        self._seen: list[tuple[float, bool, str]] = []
        self._collecting = 0.0
        self._collection_began: float | None = None
        self._exact = False
        self._stop = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._looker = threading.Thread(target=self._look, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._thread)
        gc.callbacks.append(self._on_collection)
        loop: Any = self.loop
        self._exact = hasattr(loop, "_run_once")
        if self._exact:
            loop._run_once = self._measured(loop._run_once)
        else:
            self._beat()
        self._looker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._looker.join()
        if self._exact:
            del vars(self.loop)["_run_once"]
        elif self._timer is not None:
            self._timer.cancel()
        gc.callbacks.remove(self._on_collection)
        self._began = None

    def check(self) -> None:
        """Assert that no turn was over the limit.

        Raises:
            AssertionError: a turn was; has the stacks.
        """
        assert self.turns, "the watchdog has seen no turn"
        found = "\n\n".join(map(str, self.faults[:5]))
        assert not self.count, f"{self.count} turns over {self.limit * 1e3:.0f} ms\n\n{found}"

    def found(self, turn: Turn) -> None:
        """Record a turn over the limit."""
        self.count += 1
        if len(self.faults) < _MOST:
            self.faults.append(turn)

    # -- a turn ---------------------------------------------------------------------------

    def _measured(self, run_once: Callable[[], None]) -> Callable[[], None]:
        def turn() -> None:
            self._begin()
            try:
                run_once()
            finally:
                self._end()

        return turn

    def _beat(self) -> None:
        """End one turn and begin the next; at most ``_LOOK`` of the time between is idle."""
        self._end(_LOOK)
        self._begin()
        self._timer = self.loop.call_later(_LOOK, self._beat)

    def _begin(self) -> None:
        self._collecting = 0.0
        self._seen = []
        self._last_look = self._began = time.thread_time()

    def _end(self, others: float = 0.0) -> None:
        began, self._began = self._began, None
        if began is None:
            return
        took = time.thread_time() - began - others
        self.turns += 1
        self.worst = max(self.worst, took)
        counted = took if self._collector else took - self._collecting
        if counted > self.limit:
            self._judge(took, counted)

    def _judge(self, took: float, counted: float) -> None:
        seen, whole = self._seen, sum(each for each, _, _ in self._seen)
        # A turn without samples counts as the server's.
        share = sum(each for each, ours, _ in seen if ours) / whole if whole else 1.0
        if counted * share <= self.limit:
            return
        turn = Turn(took, counted * share, self._collecting)
        for each, ours, stack in seen:
            shown = stack if ours else f"(not ours)\n{stack}"
            turn.stacks[shown] = turn.stacks.get(shown, 0.0) + each
        self.found(turn)

    def _on_collection(self, phase: str, _info: dict[str, int]) -> None:
        if threading.get_ident() != self._thread:
            return
        if phase == "start":
            self._collection_began = time.thread_time()
        elif self._collection_began is not None:
            self._collecting += time.thread_time() - self._collection_began
            self._collection_began = None

    # -- the second thread ----------------------------------------------------------------

    def _look(self) -> None:
        while not self._stop.wait(_LOOK):
            began, now = self._began, time.clock_gettime(self._clock)
            if began is None or now - began < _WORTH_A_LOOK or now <= self._last_look:
                continue
            frame = sys._current_frames().get(self._thread)
            if frame is not None and began == self._began:
                took, self._last_look = now - self._last_look, now
                self._seen.append((took, self._is_ours(frame), _shown(frame)))

    def _is_ours(self, frame: FrameType | None) -> bool:
        if self._all_ours:
            return True
        library = False
        while frame is not None and not _is_the_loop(frame):
            name = frame.f_code.co_filename
            if name.startswith(_TESTS) and name != __file__:
                return False
            if name.startswith(_SERVING):
                return not name.startswith(_FAKES)
            library = library or any(each in name for each in _SERVER_LIBRARIES)
            frame = frame.f_back
        return library


def _is_the_loop(frame: FrameType) -> bool:
    """Return whether a frame belongs to the event loop itself; frames outside it are the test's."""
    return frame.f_code.co_filename.endswith(("/asyncio/base_events.py", "/asyncio/runners.py"))


def _shown(frame: FrameType | None) -> str:
    lines: list[str] = []
    while frame is not None and len(lines) < _DEPTH and not _is_the_loop(frame):
        code = frame.f_code
        name = code.co_filename.removeprefix(f"{_ROOT}/")
        lines.append(f"   {name}:{frame.f_lineno} {code.co_qualname}")
        frame = frame.f_back
    return "\n".join(reversed(lines))

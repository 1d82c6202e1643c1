"""Virtual time: an event loop that jumps to its next timer and assigns tasks to processes.

A history of minutes takes milliseconds, and the same seed gives the same history, because it does
not depend on threads or a real clock. Here, a "process" is a name; everything that its tasks start
belongs to it, so that a rank can disappear as after ``kill -9``.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any

process_var: ContextVar[str] = ContextVar("tests.faults.process", default="test")
"""Which simulated process the current code runs in."""

_START = 1000.0
_EPOCH = 1_700_000_000.0
_MOST_TURNS = 100_000
"""Maximum number of turns of the loop at one time; more indicate an endless loop."""


class Deadlock(Exception):
    """No event is left, or events repeat endlessly at the same time."""


class _JumpingSelector(selectors.SelectSelector):
    """A selector that advances the loop's clock instead of waiting."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # There are no sockets and no threads: nothing that the kernel knows of is ever ready.
        self.loop.jump(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with its own time."""

    def __init__(self) -> None:
        self._now = _START
        self._turns = 0
        self.tasks: dict[str, set[asyncio.Task[Any]]] = {}
        """Tasks that have not ended, by process."""
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float | None) -> None:
        """Advance time by ``seconds``; ``None`` if no timer is set.

        Raises:
            Deadlock: there is no timer to wait for, or time has stood still for too long.
        """
        if seconds is None:
            raise Deadlock("every task waits and no timer is set")
        if seconds > 0:
            self._now += seconds
            self._turns = 0
            return
        self._turns += 1
        if self._turns > _MOST_TURNS:
            raise Deadlock("time stands still: some task never waits")

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """Run ``func`` at once, because a thread would depend on real time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  raised where it is awaited
            future.set_exception(error)
        return future

    def alive(self, process: str) -> set[asyncio.Task[Any]]:
        """Return the process's tasks that have not ended."""
        return set(self.tasks.get(process, ()))

    def kill(self, process: str) -> None:
        """Cancel all tasks of a process. Data that they wrote before can still be on the wire."""
        for task in sorted(self.alive(process), key=lambda task: task.get_name()):
            task.cancel()

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], context: Any = None
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=loop, context=context)
        process = context[process_var] if context and process_var in context else process_var.get()
        mine = self.tasks.setdefault(process, set())
        mine.add(task)
        task.add_done_callback(mine.discard)
        return task


class VirtualClock:
    """The loop's time as ``serving.clock.Clock``."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return _EPOCH + self._loop.time()


def run_virtually(main: Coroutine[Any, Any, Any]) -> Any:
    """Run ``main`` in a new loop; cancel the tasks that it leaves."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        left = [task for tasks in loop.tasks.values() for task in tasks]
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=60))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

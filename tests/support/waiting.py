"""Wait for a condition that is not signalled by an event.

The only purpose of the timeout is to end a hang: tests assert what happens, never how long it
takes, so the timeout is long enough for a busy machine.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 300.0
"""Default timeout, seconds."""


PATIENT_LINK = {"connect_timeout": PATIENCE, "hello_timeout": PATIENCE, "keepalive": PATIENCE}
"""Settings of a link that outlives a machine that stops for seconds.

With the default settings, a router loses its ranks then, and gets them back.
"""


async def eventually(
    condition: Callable[[], Any | Awaitable[Any]],
    what: str = "",
    *,
    timeout: float = PATIENCE,
    interval: float = 0.005,
) -> Any:
    """Poll ``condition`` until it returns a true value.

    Args:
        condition: function or coroutine function without arguments.
        what: description of the condition in the failure message; by default the condition's
        source. timeout: seconds after which the test fails.
        interval: seconds between two polls.

    Returns:
        The condition's first true value.

    Raises:
        AssertionError: the condition is still false after ``timeout``.
    """
    try:
        async with asyncio.timeout(timeout) as deadline:
            while True:
                found = condition()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(interval)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise AssertionError(_in_vain(condition, what, timeout)) from None


def wait_until(
    condition: Callable[[], Any],
    what: str = "",
    *,
    timeout: float = PATIENCE,
    interval: float = 0.05,
) -> Any:
    """Poll ``condition`` until it returns a true value, blocking the thread.

    Arguments, return value and failure are those of ``eventually``.
    """
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, _in_vain(condition, what, timeout)
        time.sleep(interval)
    return found


async def in_time(
    attempt: Callable[[float], Awaitable[T]],
    late: type[Exception] | tuple[type[Exception], ...] = AssertionError,
) -> T:
    """Give ``attempt`` more and more time until it is enough.

    For a time that must end after a step of the test and not before it, such as the deadline of a
    request that has begun: on any machine, the first time that is long enough is used.

    Args:
        attempt: coroutine function; its argument is the time that it has, seconds.
        late: exceptions of an attempt whose time was too short.

    Returns:
        The result of the first attempt that had enough time.

    Raises:
        AssertionError: the longest time, half of ``PATIENCE``, is not enough.
    """
    seconds = 0.1
    while True:
        try:
            return await attempt(seconds)
        except late as error:
            if seconds >= PATIENCE / 2:
                raise AssertionError(f"{seconds:g} s were not enough") from error
        seconds = min(seconds * 4, PATIENCE / 2)


async def loop_turns(count: int = 5) -> None:
    """Let tasks that are ready run, for ``count`` turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def _in_vain(condition: Callable[[], Any], what: str, timeout: float) -> str:
    if not what:
        try:
            what = inspect.getsource(condition).strip()
        except (OSError, TypeError):
            what = repr(condition)
    return f"waited {timeout:g} s in vain for: {what}"

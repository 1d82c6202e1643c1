"""Between the fleet and admission: how a request waits for its turn.

The fleet states what it needs and gives a function that places the request; whoever implements
``Turnstile`` decides when to call it. ``serving.admission`` has the real one; ``OpenTurnstile``
lets everybody through at once and only parks while nothing takes the request.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serving.clock import Clock
from serving.errors import DeadlineExceeded
from serving.request_context import Caller

Launch = Callable[[], str | None]
"""Place the request on a rank now: none when it is placed, else why nothing takes it. Raises
what is wrong with the request itself."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What one request needs."""

    request_id: str
    caller: Caller
    prompt_tokens: int
    output_tokens: int
    """Expected, over all choices."""
    deadline: float
    """Seconds on the router's monotonic clock."""


class Ticket(Protocol):
    """A request that was let in."""

    async def again(self, launch: Launch) -> None:
        """Place the request anew after its group was lost: before all that is queued.

        Raises:
            DeadlineExceeded: nothing took it until its deadline.
        """
        ...

    def release(self, *, generated_tokens: int) -> None:
        """The request ended, well or not. Safe to call twice."""
        ...


class Turnstile(Protocol):
    """Lets requests through when it is their turn."""

    def check(self, caller: Caller) -> None:
        """Refuse at once what would be refused anyway, before any work is done.

        Raises:
            Overloaded: the queue is full, or the tenant's quota is used up.
        """
        ...

    async def enter(self, ask: Ask, launch: Launch) -> Ticket:
        """Wait until it is the request's turn and ``launch`` has placed it.

        Raises:
            Overloaded: it could not be served in time, or a quota is used up; raised at once.
            DeadlineExceeded: nothing took it until its deadline.
        """
        ...

    def wake(self) -> None:
        """Something changed in the fleet: waiting requests may fit now."""
        ...


class OpenTurnstile:
    """No queue and no quota: requests wait only while no rank takes them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = asyncio.Event()

    def check(self, caller: Caller) -> None:
        """Let everybody try."""

    async def enter(self, ask: Ask, launch: Launch) -> "OpenTicket":
        """Launch as soon as a rank takes it."""
        await self.launch(ask, launch)
        return OpenTicket(self, ask)

    def wake(self) -> None:
        """Let those that wait try again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def launch(self, ask: Ask, launch: Launch) -> None:
        """Try after every change until the deadline.

        Raises:
            DeadlineExceeded: nothing took it until then.
        """
        while (why := launch()) is not None:
            changed = self._changed
            try:
                async with asyncio.timeout(max(ask.deadline - self._clock.monotonic(), 0)):
                    await changed.wait()
            except TimeoutError as error:
                raise DeadlineExceeded(f"no rank took it before its deadline: {why}") from error


class OpenTicket:
    """Of an ``OpenTurnstile``."""

    def __init__(self, turnstile: OpenTurnstile, ask: Ask) -> None:
        self._turnstile = turnstile
        self._ask = ask

    async def again(self, launch: Launch) -> None:
        """As the first time."""
        await self._turnstile.launch(self._ask, launch)

    def release(self, *, generated_tokens: int) -> None:
        """Let others try."""
        del generated_tokens
        self._turnstile.wake()

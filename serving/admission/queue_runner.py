"""Where requests wait for their turn: the queue, when it is looked at, and how a wait ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from serving.admission.api import Launch
from serving.admission.queue import FairQueue
from serving.clock import Clock
from serving.errors import DeadlineExceeded
from serving.request_context import Journal, Priority
from serving.settings import AdmissionSettings
from serving.telemetry import metrics

_GAUGES = {each: metrics.ADMISSION_QUEUE.labels(each.name.lower()) for each in Priority}


@dataclass(slots=True, eq=False)
class Waiter:
    """One request, from its entry to its end."""

    tenant: str
    priority: Priority
    tokens: int
    weight: float
    deadline: float
    launch: Launch
    journal: Journal
    entered_at: float
    """When its present wait began."""
    launched_at: float | None = None
    """Since when it is on a rank; none: it is on none."""
    turn: asyncio.Future[None] | None = None
    """Of one that waits: done when it is launched or given up."""
    predicted: float | None = None
    """Seconds that it was expected to wait."""
    why: str = "others are before it"
    """Why it was not launched when it was tried last."""


class WaitingRoom:
    """Launches requests in the order of the queue, strictly: nobody passes one that does not fit.

    It is looked at when ``look_soon`` is called, when a deadline passes, and every
    ``recheck_interval`` while somebody waits; a room without waiters has no timer.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        clock: Clock,
        *,
        ready: Callable[[], bool],
        try_launch: Callable[[Waiter], bool],
    ) -> None:
        """Make an empty room.

        Args:
            settings: bounds and times.
            clock: of the deadlines.
            ready: whether any group takes work.
            try_launch: places a request, or says that nothing takes it now; what it raises
                ends the request.
        """
        self._settings = settings
        self._clock = clock
        self._ready = ready
        self._try_launch = try_launch
        self.queue: FairQueue[Waiter] = FairQueue(
            requests=settings.queue_requests, tokens=settings.queue_tokens, ageing=settings.ageing
        )
        self._numbers = count()
        self._deadlines: list[tuple[float, int, Waiter]] = []
        self._unready_at = -inf
        """When no group was ready, last."""
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def look_soon(self) -> None:
        """Try the head of the queue soon; many calls at once make one try."""
        if self.queue and self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self.look)

    def is_ready(self, now: float) -> bool:
        """Whether any group takes work; who waits while none does is parked."""
        if self._ready():
            return True
        self._unready_at = now
        return False

    async def wait(self, waiter: Waiter, *, resumed: bool = False) -> None:
        """Queue a request and return when it was launched.

        Args:
            waiter: the request; whether there is room for it is not asked here.
            resumed: put it before all others.

        Raises:
            DeadlineExceeded: nothing took it until its deadline.
            Exception: what its launch raised, or what ``close`` was given.
        """
        now = self._clock.monotonic()
        passes_others = bool(self.queue)
        waiter.turn = asyncio.get_running_loop().create_future()
        if resumed:
            self.queue.push_resumed(waiter)
        else:
            self.queue.push(waiter, now)
        heappush(self._deadlines, (waiter.deadline, next(self._numbers), waiter))
        self.is_ready(now)
        if passes_others and self.queue.head(now) is waiter:
            self.look()  # it goes before one that does not fit, and may fit itself
        else:
            self._after_change()
        try:
            await waiter.turn
        except BaseException:
            self.queue.discard(waiter)  # cancelled while it waited
            self._after_change()
            self.look_soon()
            raise
        finally:
            waiter.journal.waited += self._clock.monotonic() - waiter.entered_at
            if self._unready_at >= waiter.entered_at and not waiter.journal.parked:
                waiter.journal.parked = True
                metrics.REQUESTS_PARKED.inc()

    def look(self) -> None:
        """Launch from the head of the queue until one does not fit; give up who is too late."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        now = self._clock.monotonic()
        self.is_ready(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            late = heappop(self._deadlines)[2]
            if late in self.queue:
                text = f"nothing took it before its deadline: {late.why}"
                self._give_up(late, DeadlineExceeded(text))
        while (head := self.queue.head(now)) is not None:
            if head.turn is None or head.turn.done():
                self.queue.discard(head)  # cancelled; its task has not run yet
                continue
            try:
                if not self._try_launch(head):
                    break
            except Exception as error:  # noqa: BLE001  it is the request's own
                self._give_up(head, error)
                continue
            self.queue.pop(now)
            head.turn.set_result(None)
        self._after_change()

    def close(self, error: Callable[[], Exception]) -> None:
        """Give up all that wait."""
        while (waiter := self.queue.head(self._clock.monotonic())) is not None:
            self._give_up(waiter, error())
        self._after_change()

    def _give_up(self, waiter: Waiter, error: Exception) -> None:
        self.queue.discard(waiter)
        if waiter.turn is not None and not waiter.turn.done():
            waiter.turn.set_exception(error)

    def _after_change(self) -> None:
        self._arm()
        for priority, gauge in _GAUGES.items():
            gauge.set(self.queue.requests(priority))
        metrics.ADMISSION_QUEUE_TOKENS.set(self.queue.tokens)
        metrics.PARKED_REQUESTS.set(0 if self._ready() else len(self.queue))

    def _arm(self) -> None:
        """See to it that the room is looked at in time, if anybody is in it."""
        while self._deadlines and self._deadlines[0][2] not in self.queue:
            heappop(self._deadlines)
        if len(self._deadlines) > 2 * len(self.queue) + 64:
            # Most belong to requests that are gone.
            self._deadlines = [entry for entry in self._deadlines if entry[2] in self.queue]
            heapify(self._deadlines)
        if not self._deadlines:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        loop = asyncio.get_running_loop()
        left = max(self._deadlines[0][0] - self._clock.monotonic(), 0.0)
        at = loop.time() + min(left, self._settings.recheck_interval)
        if self._timer is None or at < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.look()

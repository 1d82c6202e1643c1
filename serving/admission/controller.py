"""Lets requests through when it is their turn, and refuses early those that would wait in vain.

One request's way:

1. While nobody waits it is launched at once, with no task, timer or future.
2. Otherwise, before it is queued: is there room for it, and will its turn come before its
   deadline (and within ``max_wait``)? If not it is refused now, with the time after which it is
   worth another try.
3. It waits. Whenever something changes - a request ends, a group comes - the head of the queue
   is launched, and the next, until one does not fit. Nobody passes a head that does not fit:
   a large request would starve behind small ones otherwise.

While no group is ready nothing is predicted: requests are parked until one comes or their
deadline passes. Only the bound of the queue holds.
"""

from collections.abc import Callable
from math import inf

from serving.admission.api import Ask, Launch
from serving.admission.limits import LimitsOf, default_limits
from serving.admission.predictor import WaitPredictor
from serving.admission.queue_runner import Waiter, WaitingRoom
from serving.admission.quota_store import shared_store
from serving.admission.quotas import Lease, Quotas
from serving.clock import Clock, SystemClock
from serving.errors import NotReady, Overloaded
from serving.request_context import Caller, Priority
from serving.settings import AdmissionSettings
from serving.telemetry import metrics

_UNKNOWN_RETRY = 1.0
"""Seconds that a refused request is advised when nothing can be predicted."""
for _reason in ("queue_full", "predicted_wait"):
    metrics.ADMISSION_REFUSALS.labels(_reason)  # there from the start, at 0
_WAIT = {each: metrics.ADMISSION_WAIT.labels(each.name.lower()) for each in Priority}


class AdmissionController:
    """Implements ``serving.admission.api.Turnstile``. All calls come from one event loop."""

    def __init__(
        self,
        settings: AdmissionSettings,
        *,
        ready: Callable[[], bool],
        clock: Clock | None = None,
        limits_of: LimitsOf | None = None,
    ) -> None:
        """Let everybody try.

        Args:
            settings: bounds and times.
            ready: whether any group takes work, as far as that does not depend on load.
            clock: the router's.
            limits_of: the limits of a tenant; default: those of the settings, for all.

        Raises:
            SettingsError: the Redis of the settings cannot be used.
        """
        self._settings = settings
        self._clock = clock or SystemClock()
        self._limits_of = limits_of or default_limits(settings)
        self._quotas = Quotas(
            self._limits_of,
            self._clock,
            shared_store(settings),
            timeout=2 * settings.redis_timeout,
            down=settings.redis_down,
        )
        self._room = WaitingRoom(settings, self._clock, ready=ready, try_launch=self._try)
        self._predictor = WaitPredictor(settings.rate_window)
        self._closed = False

    # -- Turnstile ----------------------------------------------------------------------

    def check(self, caller: Caller) -> None:
        """Refuse at once what would be refused anyway; see ``Turnstile``.

        Raises:
            Overloaded: the queue is full, or the tenant's quota is used up.
            NotReady: the router is shutting down.
        """
        self._check_open()
        self._quotas.check(caller.tenant)
        if self._room.queue:
            now = self._clock.monotonic()
            smallest = Ask("", caller, prompt_tokens=1, output_tokens=0, deadline=inf)
            self._expect(self._waiter(smallest, _no_launch, now), now)

    async def enter(self, ask: Ask, launch: Launch) -> "AdmissionTicket":
        """Wait until it is the request's turn and ``launch`` has placed it; see ``Turnstile``.

        It may be cancelled after ``launch`` has placed the request: then the caller takes it
        off its rank, as it would after any other end.

        Raises:
            Overloaded: it could not be served in time, or a quota is used up; raised at once.
            DeadlineExceeded: nothing took it until its deadline.
            NotReady: the router is shutting down, or quotas cannot be checked.
        """
        self._check_open()
        now = self._clock.monotonic()
        waiter = self._waiter(ask, launch, now)
        if self._room.queue:
            self._expect(waiter, now)  # before it costs its tenant anything
        lease: Lease | None = None
        if self._limits_of(waiter.tenant).limited:
            seconds = max(ask.deadline - now, 0.0)
            lease = await self._quotas.take(waiter.tenant, ask.prompt_tokens, seconds)
        try:
            if self._room.queue or not self._try(waiter):
                await self._wait(waiter)
        except BaseException:
            if lease is not None:
                lease.give_back()
            raise
        _WAIT[waiter.priority].observe(self._clock.monotonic() - now)
        return AdmissionTicket(self, waiter, lease)

    def wake(self) -> None:
        """Something changed in the fleet: the head of the queue is tried soon."""
        self._room.look_soon()

    def close(self) -> None:
        """Give up all that wait, with NotReady, and let nobody in. Safe to call twice."""
        self._closed = True
        self._room.close(_closing)

    async def stop(self) -> None:
        """Close, and let go of the quotas' store: after the last request has ended."""
        self.close()
        await self._quotas.close()

    # -- tickets ------------------------------------------------------------------------

    async def again(self, waiter: Waiter, launch: Launch) -> None:
        """Launch a request anew that has lost its rank.

        Raises:
            DeadlineExceeded: nothing took it until its deadline.
            NotReady: the router is shutting down.
        """
        self._check_open()
        if waiter.launched_at is not None:
            self._predictor.lost(waiter.tokens, waiter.launched_at, self._clock.monotonic())
        waiter.launch, waiter.launched_at = launch, None
        waiter.entered_at = self._clock.monotonic()
        if self._room.queue.has_resumed or not self._try(waiter):
            await self._queued(waiter, resumed=True)

    def ended(self, waiter: Waiter) -> None:
        """Note that a request left its rank; safe to call for one that is on none."""
        launched_at, waiter.launched_at = waiter.launched_at, None
        if launched_at is not None:
            self._predictor.ended(waiter.tokens, launched_at, self._clock.monotonic())
            self._room.look_soon()

    # -- one request --------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise _closing()

    def _waiter(self, ask: Ask, launch: Launch, now: float) -> Waiter:
        caller = ask.caller
        return Waiter(
            tenant=caller.tenant,
            priority=caller.priority,
            tokens=max(ask.prompt_tokens + ask.output_tokens, 1),
            weight=self._limits_of(caller.tenant).weight,
            deadline=ask.deadline,
            launch=launch,
            journal=caller.journal,
            entered_at=now,
        )

    def _try(self, waiter: Waiter) -> bool:
        """Launch a request; false, with the reason in it, when nothing takes it now."""
        why = waiter.launch()
        if why is not None:
            waiter.why = why
            return False
        waiter.launched_at = self._clock.monotonic()
        self._predictor.launched(waiter.tokens, waiter.launched_at)
        return True

    def _expect(self, waiter: Waiter, now: float) -> None:
        """Predict the wait of a request that has to be queued.

        Raises:
            Overloaded: it would be too long, or there is no room to wait.
        """
        predicted = None
        if self._room.is_ready(now):
            ahead = self._room.queue.tokens_ahead(waiter, now)
            predicted = self._predictor.wait(ahead + waiter.tokens, now)
        if (full := self._room.queue.full_for(waiter)) is not None:
            raise _refusal("queue_full", full, predicted or _UNKNOWN_RETRY)
        waiter.predicted = predicted
        most = waiter.deadline - now
        if self._settings.max_wait is not None and waiter.priority is not Priority.BATCH:
            most = min(most, self._settings.max_wait)
        if predicted is not None and predicted > most:
            why = f"it would wait about {predicted:.1f} s, {most:.1f} s are its limit"
            raise _refusal("predicted_wait", why, predicted - most)

    async def _wait(self, waiter: Waiter) -> None:
        self._check_open()
        self._expect(waiter, self._clock.monotonic())
        await self._queued(waiter)
        if waiter.predicted is not None:
            seen = self._clock.monotonic() - waiter.entered_at
            metrics.ADMISSION_PREDICTED_WAIT.observe(waiter.predicted)
            metrics.ADMISSION_WAIT_ERROR.observe(seen - waiter.predicted)

    async def _queued(self, waiter: Waiter, *, resumed: bool = False) -> None:
        try:
            await self._room.wait(waiter, resumed=resumed)
        except BaseException:
            self.ended(waiter)  # cancelled when it had just been launched
            raise


class AdmissionTicket:
    """A request that was let in; implements ``serving.admission.api.Ticket``."""

    __slots__ = ("_controller", "_lease", "_waiter")

    def __init__(
        self, controller: AdmissionController, waiter: Waiter, lease: Lease | None
    ) -> None:
        self._controller = controller
        self._waiter = waiter
        self._lease = lease

    async def again(self, launch: Launch) -> None:
        """Place the request anew, before all that is queued; see ``Ticket``.

        Raises:
            DeadlineExceeded: nothing took it until its deadline.
            NotReady: the router is shutting down.
        """
        await self._controller.again(self._waiter, launch)

    def release(self, *, generated_tokens: int) -> None:
        """The request ended, well or not. Safe to call twice."""
        self._controller.ended(self._waiter)
        if self._lease is not None:
            self._lease.end(generated_tokens)


def _no_launch() -> str | None:
    raise AssertionError("a request that is only checked is never launched")


def _closing() -> NotReady:
    return NotReady("this router is shutting down; try again")


def _refusal(reason: str, why: str, seconds: float) -> Overloaded:
    metrics.ADMISSION_REFUSALS.labels(reason).inc()
    return Overloaded(f"too much work: {why}; try again in {max(seconds, 1):.0f} s", seconds)

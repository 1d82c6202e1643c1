"""Admission control: places requests in queue order, and rejects those that would be late.

The path of one request:

1. While the queue is empty, the request is placed immediately, without a task, timer or future.
2. Otherwise, before it is queued, the controller checks whether the queue has space and whether the
  request will be placed before its deadline (and within ``max_wait``). If not, the request is
  rejected immediately, with the time after which a retry is worthwhile.
3. The request waits. Whenever a request ends or a group joins, the head of the queue is placed,
   then the next one, until one does not fit. No request overtakes a head that does not fit;
   otherwise large requests would starve behind small ones.

While no group is ready, no wait is predicted: requests are parked until a group joins or their
deadline passes. Only the queue's size limit applies.
"""

from dataclasses import dataclass
from itertools import islice
from math import inf

from serving.admission.api import AdmissionRequest, Bystander
from serving.admission.budgets import Budgets, Prices
from serving.admission.predictor import WaitPredictor
from serving.admission.queue_runner import QueueRunner
from serving.admission.quota_store import shared_store
from serving.admission.quotas import LimitsOf, Quotas, default_limits
from serving.clock import Clock, SystemClock
from serving.dispatch.dispatcher import Dispatcher, Placement
from serving.errors import NotReady, Overloaded
from serving.request_context import Priority, RequestContext
from serving.settings import AdmissionSettings
from serving.telemetry import metrics
from serving.telemetry.model_counters import Distribution

_UNKNOWN_RETRY = 1.0
"""Retry-After of a rejection without a predicted wait, seconds."""
for _reason in ("queue_full", "predicted_wait"):
    metrics.ADMISSION_REFUSALS.labels(_reason)  # exported as 0 from the start
_WAIT = {each: metrics.ADMISSION_WAIT.labels(each.name.lower()) for each in Priority}


@dataclass(frozen=True, slots=True)
class _Smallest:
    """The smallest request that a tenant can send: if it is rejected, so is every other request."""

    tenant: str
    priority: Priority
    weight: float
    tokens: int = 1
    deadline: float = inf


class AdmissionController:
    """Implements ``api.Admission`` for one model.

    Not thread-safe: all calls come from one event loop.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        dispatcher: Dispatcher,
        *,
        clock: Clock | None = None,
        limits_of: LimitsOf | None = None,
        quotas: Quotas | None = None,
        budgets: Budgets | None = None,
        prices: Prices | None = None,
        waits: Distribution | None = None,
    ) -> None:
        """Start with an empty queue.

        Args:
            settings: Limits and durations.
            dispatcher: Places requests.
            clock: Source of time; the system clock by default.
            limits_of: Returns a tenant's limits. By default, the limits in the settings apply to
                all tenants.
            quotas: Counts usage per tenant, over all models; uses the configured store by default.
            budgets: Reserves from budgets, over all models. None means no budgets.
            prices: The model's prices; required with budgets.
            waits: Counts the time to placement, seconds. None means not counted by model.

        Raises:
            SettingsError: The configured Redis cannot be used.
        """
        self._settings = settings
        self._dispatcher = dispatcher
        self._budgets = budgets
        self._prices = prices
        self._waits = waits
        self._clock = clock or SystemClock()
        self._limits_of = limits_of or default_limits(settings)
        self._quotas = quotas or quotas_of(settings, self._limits_of, self._clock)
        self._predictor = WaitPredictor(settings.rate_window)
        self._runner = QueueRunner(settings, self._clock, dispatcher, self._predictor)
        self._unsubscribe = dispatcher.subscribe(self.wake)
        self._closed = False
        self.bystander: Bystander | None = None
        """Notified of requests that need a rank. None if there are no batches."""

    @property
    def queue_length(self) -> int:
        """Number of queued requests."""
        return len(self._runner.queue)

    def positions(self, most: int) -> dict[AdmissionRequest, int]:
        """Return the positions, from 1, of the first ``most`` requests in the queue.

        They assume that no further request arrives. O(most * log tenants).
        """
        upcoming = self._runner.queue.upcoming(self._clock.monotonic())
        return {request: at for at, request in enumerate(islice(upcoming, most), 1)}

    @property
    def queued_tokens(self) -> int:
        """Prompt and expected output tokens of the queued requests."""
        return self._runner.queue.tokens

    @property
    def outstanding_tokens(self) -> int:
        """Prompt and expected output tokens of the placed requests."""
        return self._predictor.outstanding_tokens

    @property
    def armed(self) -> bool:
        """Whether a timer or a callback is set that will pump the queue."""
        return self._runner.armed

    def check(self, context: RequestContext) -> None:
        """Reject a request that ``enter`` would reject anyway; see ``Admission.check``.

        Raises:
            Overloaded: The queue is full, or the tenant's quota is exhausted.
            BudgetExceeded: A budget is known to be used up.
            NotReady: The router is shutting down.
        """
        self._check_open()
        limits = self._limits_of(context.tenant)
        if limits.limited:
            self._quotas.check(context.tenant)
        if self._budgets is not None:
            self._budgets.check(context)
        if self._runner.queue:
            now = self._clock.monotonic()
            self._predict(_Smallest(context.tenant, context.priority, limits.weight), now)

    async def enter(self, request: AdmissionRequest) -> Placement:
        """Wait for the request's turn and place it; see ``Admission.enter``.

        If the call is cancelled, the request is not left on a rank.

        Raises:
            Overloaded: The wait would be too long, or a quota is exhausted; raised immediately.
            BudgetExceeded: A budget is used up.
            DeadlineExceeded: No rank accepted the request before its deadline.
            NotReady: The router is shutting down, or quotas or budgets cannot be checked.
        """
        self._check_open()
        now = request.entered_at = self._clock.monotonic()
        limits = self._limits_of(request.tenant)
        request.weight = limits.weight
        if self._runner.queue:
            request.predicted = self._predict(request, now)  # reject before the tenant is charged
        if limits.limited:
            seconds = max(request.deadline - now, 0.0)
            request.lease = await self._quotas.take(request.tenant, request.prompt_tokens, seconds)
        try:
            await self.reserve(request)
            _check_ended(request)
            placement = None if self._runner.queue else self._runner.try_place(request)
            if placement is None and self.bystander is not None:
                placement = self._placed_instead(request)
            if placement is None:
                placement = await self._wait(request)
        except BaseException:
            self.give_back(request)
            raise
        waited = self._clock.monotonic() - now
        _WAIT[request.priority].observe(waited)
        if self._waits is not None:
            self._waits.observe(waited)
        if self.bystander is not None:
            self.bystander.arrived(placement.decision.rank_id)
        return placement

    async def reserve(self, request: AdmissionRequest) -> None:
        """Reserve from the budgets that apply to a request; see ``Admission.reserve``.

        Raises:
            BudgetExceeded: A budget is used up.
            NotReady: The budgets cannot be checked.
        """
        if self._budgets is None or self._prices is None or request.reservation is not None:
            return
        if budgets := self._budgets.of(request.context):
            request.reservation = await self._budgets.reserve(
                request.context,
                budgets,
                self._prices,
                request.prompt_tokens,
                request.max_output_tokens,
            )

    def give_back(self, request: AdmissionRequest) -> None:
        """Release the reservations of a request that will not be placed. Safe to call twice."""
        if request.lease is not None:
            request.lease.give_back()
            request.lease = None
        if request.reservation is not None:
            request.reservation.give_back()
            request.reservation = None

    async def resume(self, request: AdmissionRequest) -> Placement:
        """Place a request that has lost its rank; see ``Admission.resume``.

        Raises:
            DeadlineExceeded: No rank accepted the request before its deadline.
            NotReady: The router is shutting down.
        """
        self._check_open()
        _check_ended(request)
        now = request.entered_at = self._clock.monotonic()
        if request.placed_at is not None:
            self._predictor.lost(request.tokens, request.placed_at, now)
            request.placed_at = None
        if not self._runner.queue.has_resumed:
            placement = self._runner.try_place(request)
            if placement is not None:
                return placement
        return await self._runner.wait(request, resumed=True)

    def place_in_gap(self, request: AdmissionRequest) -> Placement | None:
        """Place the request of a batch now, unless others wait; see ``Admission.place_in_gap``.

        Raises:
            InvalidRequest: No rank can ever accept the request.
            NotReady: The router is shutting down.
        """
        self._check_open()
        if self._runner.queue:
            return None
        placed = self._dispatcher.try_place(request)
        return None if isinstance(placed, str) else placed

    def release(
        self, request: AdmissionRequest, *, generated_tokens: int, cached_tokens: int = 0
    ) -> None:
        """End a request that entered, whether it succeeded or not. Safe to call twice."""
        self._runner.ended(request)
        if request.context.yielding is not None:
            self.wake()  # the line frees capacity on its rank
        if request.reservation is not None:
            request.reservation.settle(
                prompt=request.prompt_tokens, cached=cached_tokens, output=generated_tokens
            )
        if request.lease is not None:
            request.lease.end(generated_tokens)

    def wake(self) -> None:
        """Schedule another attempt to place the head of the queue after a change in the fleet."""
        self._runner.pump_soon()

    def close(self) -> None:
        """Reject new requests, and fail queued ones with NotReady. Safe to call twice."""
        self._closed = True
        self._runner.close(_closing)

    async def stop(self) -> None:
        """Close, and disconnect from the quota store. Call after the last request has ended."""
        self.close()
        self._unsubscribe()
        await self._quotas.close()

    def _placed_instead(self, request: AdmissionRequest) -> Placement | None:
        """Place a request in place of preemptible work; return None if that is not possible."""
        assert self.bystander is not None
        if not self.bystander.make_room():
            return None
        if self._runner.queue:
            self._runner.pump_soon()
            return None
        return self._runner.try_place(request)

    def _check_open(self) -> None:
        if self._closed:
            raise _closing()

    def _predict(self, request: AdmissionRequest | _Smallest, now: float) -> float | None:
        """Predict the wait of a request that has to be queued, seconds; None if unknown.

        Raises:
            Overloaded: The wait would be too long, or the queue is full.
        """
        predicted = None
        if self._runner.is_ready(now):
            ahead = self._runner.queue.tokens_ahead(request, now)
            predicted = self._predictor.wait(ahead + request.tokens, now)
        if (full := self._runner.queue.full_for(request)) is not None:
            raise _rejection("queue_full", full, predicted or _UNKNOWN_RETRY)
        limit = request.deadline - now
        if self._settings.max_wait is not None and request.priority is not Priority.BATCH:
            limit = min(limit, self._settings.max_wait)
        if predicted is not None and predicted > limit:
            why = f"the predicted wait is {predicted:.1f} s, the limit is {limit:.1f} s"
            raise _rejection("predicted_wait", why, predicted - limit)
        return predicted

    async def _wait(self, request: AdmissionRequest) -> Placement:
        self._check_open()
        predicted = request.predicted = self._predict(request, self._clock.monotonic())
        placement = await self._runner.wait(request)
        if predicted is not None:
            waited = self._clock.monotonic() - request.entered_at
            metrics.ADMISSION_PREDICTED_WAIT.observe(predicted)
            metrics.ADMISSION_WAIT_ERROR.observe(waited - predicted)
        return placement


def quotas_of(settings: AdmissionSettings, limits_of: LimitsOf, clock: Clock) -> Quotas:
    """Return the quotas of a router, which the controllers of all its models share.

    Raises:
        SettingsError: The configured Redis cannot be used.
    """
    return Quotas(
        limits_of,
        clock,
        shared_store(settings),
        timeout=2 * settings.redis_timeout,
        down=settings.redis_down,
    )


def _check_ended(request: AdmissionRequest) -> None:
    """Raise the error of a request that was ended while it had no turn."""
    if request.ended is not None:
        raise request.ended


def _closing() -> NotReady:
    return NotReady("this router is shutting down; try again")


def _rejection(reason: str, why: str, seconds: float) -> Overloaded:
    metrics.ADMISSION_REFUSALS.labels(reason).inc()
    return Overloaded(f"overloaded: {why}; try again in {max(seconds, 1):.0f} s", seconds)

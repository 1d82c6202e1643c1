"""Runs the admission queue: places requests in order, and fails those whose deadline has passed."""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

from serving.admission.api import AdmissionRequest
from serving.admission.predictor import WaitPredictor
from serving.admission.queue import FairQueue
from serving.clock import Clock
from serving.dispatch.dispatcher import Dispatcher, Placement
from serving.errors import DeadlineExceeded
from serving.request_context import Priority
from serving.settings import AdmissionSettings
from serving.telemetry import metrics

_GAUGES = (
    *(metrics.ADMISSION_QUEUE.labels(each.name.lower()) for each in Priority),
    metrics.ADMISSION_QUEUE_TOKENS,
    metrics.PARKED_REQUESTS,
)
"""Sums over the queues of all models."""


class QueueRunner:
    """Places requests strictly in queue order: no request overtakes a head that does not fit.

    The queue is pumped after ``pump_soon``, when a deadline passes, and every
    ``recheck_interval`` while it is not empty. An empty queue has no timer.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        clock: Clock,
        dispatcher: Dispatcher,
        predictor: WaitPredictor,
    ) -> None:
        """Start with an empty queue.

        Args:
            settings: Limits and durations.
            clock: The clock that deadlines refer to.
            dispatcher: Places requests; an error that it raises ends the request.
            predictor: Records the requests that are placed and those that end.
        """
        self._settings = settings
        self._clock = clock
        self._dispatcher = dispatcher
        self._predictor = predictor
        self.queue: FairQueue[AdmissionRequest] = FairQueue(
            requests=settings.queue_requests, tokens=settings.queue_tokens, ageing=settings.ageing
        )
        self._numbers = count()
        self._deadlines: list[tuple[float, int, AdmissionRequest]] = []
        self._unready_at = -inf
        """Last time at which no group was ready."""
        self._shown: tuple[int, ...] = (0,) * len(_GAUGES)
        """This queue's contribution to the values of ``_GAUGES``."""
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def armed(self) -> bool:
        """Whether a timer or a callback is set that will pump the queue."""
        return self._soon is not None or self._timer is not None

    def try_place(self, request: AdmissionRequest) -> Placement | None:
        """Place a request now; return None and set ``request.why`` if no rank accepts it.

        Raises:
            InvalidRequest: No rank can ever accept the request.
        """
        placed = self._dispatcher.try_place(request)
        if isinstance(placed, str):
            request.why = placed
            return None
        request.placed_at = self._clock.monotonic()
        self._predictor.placed(request.tokens, request.placed_at)
        return placed

    def ended(self, request: AdmissionRequest) -> None:
        """Record that a request left its rank; ignored for a request that is not placed."""
        placed_at, request.placed_at = request.placed_at, None
        if placed_at is not None:
            self._predictor.ended(request.tokens, placed_at, self._clock.monotonic())
            self.pump_soon()

    def pump_soon(self) -> None:
        """Pump the queue in the next iteration of the event loop; further calls are coalesced."""
        if self.queue and self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self.pump)

    def is_ready(self, now: float) -> bool:
        """Return whether any group accepts requests; otherwise, waiting requests are parked."""
        if self._dispatcher.ready:
            return True
        self._unready_at = now
        return False

    async def wait(self, request: AdmissionRequest, *, resumed: bool = False) -> Placement:
        """Queue a request and return when it is placed.

        Args:
            request: The request; free space in the queue is not checked here.
            resumed: Whether to queue it ahead of all others.

        Raises:
            DeadlineExceeded: No rank accepted the request before its deadline.
            Exception: The error of its placement, or the one created by ``close``.
        """
        now = self._clock.monotonic()
        overtakes = bool(self.queue)
        request.turn = asyncio.get_running_loop().create_future()
        if resumed:
            self.queue.push_resumed(request)
        else:
            self.queue.push(request, now)
        heappush(self._deadlines, (request.deadline, next(self._numbers), request))
        self.is_ready(now)
        if overtakes and self.queue.head(now) is request:
            self.pump()  # it is now ahead of the old head, which did not fit, and may itself fit
        else:
            self._after_change()
        record = request.context.record
        try:
            return await request.turn
        except BaseException:
            self._cancel(request, request.turn)
            raise
        finally:
            record.waited += self._clock.monotonic() - request.entered_at
            if self._unready_at >= request.entered_at and not record.parked:
                record.parked = True
                metrics.REQUESTS_PARKED.inc()

    def pump(self) -> None:
        """Fail requests that are past their deadline, then place from the head while it fits."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        now = self._clock.monotonic()
        self.is_ready(now)
        while self._deadlines and self._deadlines[0][0] <= now:
            late = heappop(self._deadlines)[2]
            if late in self.queue:
                text = f"no rank accepted the request before its deadline: {late.why}"
                self._fail(late, DeadlineExceeded(text))
        while (head := self.queue.head(now)) is not None:
            if head.turn is None or head.turn.done():
                self.queue.discard(head)  # cancelled; its task has not run yet
                continue
            try:
                placement = self.try_place(head)
            except Exception as error:  # noqa: BLE001  an error of this request alone
                self._fail(head, error)
                continue
            if placement is None:
                break
            self.queue.pop(now)
            head.turn.set_result(placement)
        self._after_change()

    def close(self, error: Callable[[], Exception]) -> None:
        """Fail all queued requests, each with an error created by ``error``."""
        while (request := self.queue.head(self._clock.monotonic())) is not None:
            self._fail(request, error())
        self._after_change()

    def _cancel(self, request: AdmissionRequest, turn: asyncio.Future[Placement]) -> None:
        """Clean up a wait that ended without a placement or was cancelled right after one."""
        self.queue.discard(request)
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            turn.result().handle.release(request.stream)
        self.ended(request)
        self._after_change()
        self.pump_soon()

    def _fail(self, request: AdmissionRequest, error: Exception) -> None:
        self.queue.discard(request)
        if request.turn is not None and not request.turn.done():
            request.turn.set_exception(error)

    def _after_change(self) -> None:
        self._arm()
        values = (
            *map(self.queue.requests, Priority),
            self.queue.tokens,
            0 if self._dispatcher.ready else len(self.queue),
        )
        for gauge, value, before in zip(_GAUGES, values, self._shown, strict=True):
            gauge.inc(value - before)
        self._shown = values

    def _arm(self) -> None:
        """Set the timer for the next deadline or recheck; stop it if the queue is empty."""
        while self._deadlines and self._deadlines[0][2] not in self.queue:
            heappop(self._deadlines)
        if len(self._deadlines) > 2 * len(self.queue) + 64:
            # Most entries belong to requests that have left the queue.
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
        self.pump()

"""Runs batches: validates them, claims lines, sends them, and writes the results at the end.

All routers with the same database run the same loop. Each leases what it works on (``owners``);
when the lease of a killed router ends, other routers take over.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

import structlog

from serving.batch.answers import AnswerWriter
from serving.batch.input_lines import parse_line
from serving.batch.line_requests import (
    LineRequest,
    LineResponse,
    SendLine,
    Verdict,
    answer_content,
    usage_of,
    verdict_on,
)
from serving.batch.records import Answer, Batch, Claim, Status
from serving.batch.result_lines import content_of
from serving.batch.schema import CLAIMED, COMPLETED, FAILED, OPEN
from serving.batch.store import BatchStore
from serving.clock import Clock
from serving.errors import ResourceNotFound, ServingError
from serving.settings import BatchSettings
from serving.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LOOKAHEAD = 16
"""Minimum number of lines per tenant that are prepared in addition to those that run."""
_CLAIMS = 4
"""Lines are claimed once one in this many of a tenant's lines is missing, to save transactions."""
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
"""Delays before a line is sent again, seconds."""
_RETRIES = 3
"""Number of times that a line is sent again after a failure of the engine."""
_HOUSEKEEPING = 60.0
"""Interval at which expired files and batches are removed, seconds."""
_FLUSH = 5.0
"""Time to record answers when the router stops, seconds."""
_STATES = {OPEN: "open", CLAIMED: "claimed", COMPLETED: "completed", FAILED: "failed"}

R = TypeVar("R")

for _stage in ("look", "answer", Status.VALIDATING, Status.FINALIZING, Status.CANCELLING):
    metrics.BATCH_FAILURES.labels(str(_stage))  # exported as 0 from the start


@dataclass(slots=True)
class _Running:
    """A line that this router runs."""

    claim: Claim
    tenant: str
    task: asyncio.Task[None]


class Lines(Protocol):
    """What the loop uses of ``model_schedulers.ModelSchedulers``."""

    @property
    def running(self) -> int:
        """Number of lines on ranks."""
        ...

    def stop(self) -> None:
        """Stop granting turns."""
        ...


class BatchRunner:
    """The loop of one router."""

    def __init__(
        self,
        store: BatchStore,
        scheduler: Lines,
        send: SendLine,
        settings: BatchSettings,
        clock: Clock,
    ) -> None:
        """Prepare; ``run`` starts the loop.

        Args:
            store: Files, batches and lines.
            scheduler: Decides when lines run on ranks.
            send: Sends the request of a line.
            settings: Limits and durations.
            clock: The router's clock.
        """
        self._store = store
        self._scheduler = scheduler
        self._send = send
        self._settings = settings
        self._clock = clock
        self._answers = AnswerWriter(
            lambda batch_id, answers: store.run(store.lines.answer, batch_id, answers)
        )
        self._running: dict[tuple[str, int], _Running] = {}
        self._jobs: dict[str, asyncio.Task[None]] = {}
        """Tasks that validate a batch or write its results, by batch."""
        self._wake = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        """The task of ``run``. None if it has not begun."""
        self._stopping = False
        self._look_at = self._sweep_at = self._take_over_at = float("-inf")
        """Monotonic times of the next look, sweep and take-over, seconds."""
        self._active: list[Batch] = []
        """Batches that were in progress at the last look."""
        self._exhausted: set[str] = set()
        """Batches that had no open lines at the last claim."""

    def look_soon(self) -> None:
        """Look for work now, after a batch was created or cancelled through this router."""
        self._look_at = float("-inf")
        self._wake.set()

    async def run(self) -> None:
        """Run until ``stop`` or cancelled; failures of storage and database are retried."""
        self._loop = asyncio.current_task()
        while not self._stopping:
            self._wake.clear()
            try:
                if self._clock.monotonic() >= self._look_at:
                    self._look_at = self._clock.monotonic() + self._settings.interval
                    await self._look()
                await self._feed()
            except Exception as error:  # noqa: BLE001  the loop must outlive any failure
                metrics.BATCH_FAILURES.labels("look").inc()
                _log("batches wait for their storage", error)
                # Lines that end must not cause further attempts before the next look.
                self._active = []
            left = max(self._look_at - self._clock.monotonic(), 0.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()

    async def stop(self) -> None:
        """Preempt and release all lines, so that other routers can run them. Idempotent.

        Never raises: lines that cannot be released are taken over when the lease ends.
        """
        if self._stopping:
            return
        self._stopping = True
        # The loop first, because it starts lines and jobs.
        await _cancel({self._loop} if self._loop is not None else set())
        await _cancel({*(line.task for line in self._running.values()), *self._jobs.values()})
        await self._answers.flush(_FLUSH)
        self._scheduler.stop()
        try:
            await self._store.run(self._store.leave)
        except ServingError as error:
            log.warning("lines were not released", reason=str(error))

    # -- the loop -----------------------------------------------------------------------

    async def _look(self) -> None:
        store, now = self._store, self._clock.time()
        batches = await store.run(store.renew)
        ages = [now - batch.created_at for batch in batches]
        metrics.BATCH_AGE.set(max(ages, default=0.0))
        await self._sweep()
        active = []
        for batch in batches:
            if batch.status is not Status.IN_PROGRESS:
                self._start_job(batch)
            elif not await self._close(batch, now):
                active.append(batch)
        running = {batch.batch_id for batch in active}
        for line in list(self._running.values()):
            if line.claim.batch_id not in running:
                line.task.cancel()
        if self._clock.monotonic() >= self._take_over_at:
            self._take_over_at = self._clock.monotonic() + self._settings.lease / 3
            for batch_id in running:
                await store.run(store.lines.take_over, batch_id)
                await self._release_unknown(batch_id)
        self._active = active
        self._exhausted.clear()

    async def _release_unknown(self, batch_id: str) -> None:
        """Release lines whose claim was committed although the database failed."""
        store = self._store
        owned = await store.run(store.lines.owned, batch_id)
        unknown = [claim for claim in owned if (batch_id, claim.line) not in self._running]
        if unknown:
            # Those that have ended in the meantime are not claimed any more, and stay answered.
            await store.run(store.lines.give_back, unknown)

    async def _close(self, batch: Batch, now: float) -> bool:
        """Stop running a batch that is done or whose window has passed."""
        if batch.completed + batch.failed >= batch.total:
            outcome = Status.COMPLETED
        elif now >= batch.expires_at:
            outcome = Status.EXPIRED
        else:
            return False
        if await self._store.run(self._store.batches.close, batch.batch_id, outcome):
            self.look_soon()
        return True

    def _start_job(self, batch: Batch) -> None:
        if batch.batch_id in self._jobs:
            return
        job = self._validate if batch.status is Status.VALIDATING else self._finalize
        task = asyncio.create_task(self._job(batch, job))
        self._jobs[batch.batch_id] = task

        def ended(_: asyncio.Task[None]) -> None:
            del self._jobs[batch.batch_id]
            self.look_soon()

        task.add_done_callback(ended)

    async def _job(self, batch: Batch, job: Callable[[Batch], Coroutine[Any, Any, None]]) -> None:
        try:
            if await self._store.run(self._store.batches.own, batch.batch_id, batch.status):
                await job(batch)
            else:
                # Another router owns it; check again later.
                await asyncio.sleep(self._settings.interval)
        except Exception as error:  # noqa: BLE001  repeated by this or another process
            metrics.BATCH_FAILURES.labels(batch.status.value).inc()
            _log("a batch waits", error, batch=batch.batch_id)
            await asyncio.sleep(self._settings.interval)

    async def _validate(self, batch: Batch) -> None:
        await self._store.run_long(self._store.validate, batch)

    async def _finalize(self, batch: Batch) -> None:
        if await self._store.run_long(self._store.write_results, batch):
            log.info("batch ended", batch=batch.batch_id, status=str(batch.outcome))

    async def _sweep(self) -> None:
        now = self._clock.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _HOUSEKEEPING
        counts, size = await self._store.run(self._store.sweep)
        for state, name in _STATES.items():
            metrics.BATCH_LINES.labels(name).set(counts.get(state, 0))
        metrics.BATCH_FILES.set(size)

    # -- lines --------------------------------------------------------------------------

    async def _feed(self) -> None:
        """Claim the same number of lines for each tenant, from its oldest batch first."""
        by_tenant: defaultdict[str, list[Batch]] = defaultdict(list)
        for batch in self._active:
            if batch.batch_id not in self._exhausted:
                by_tenant[batch.tenant].append(batch)
        if not by_tenant or self._stopping:
            return
        # As many lines are prepared as run, so that an idle fleet is full within seconds.
        ready = 2 * self._scheduler.running + len(by_tenant) * _LOOKAHEAD
        each = max(min(self._settings.max_running_lines, ready) // len(by_tenant), 1)
        for tenant, batches in by_tenant.items():
            wanted = each - sum(line.tenant == tenant for line in self._running.values())
            if wanted < max(each // _CLAIMS, 1):
                continue
            for batch in batches:
                if wanted > 0:
                    wanted -= await self._claim(batch, wanted)

    async def _claim(self, batch: Batch, most: int) -> int:
        store = self._store
        claims = await store.run(store.lines.claim, batch.batch_id, most)
        if len(claims) < most:
            self._exhausted.add(batch.batch_id)
        for claim in claims:
            self._start(batch, claim)
        return len(claims)

    def _start(self, batch: Batch, claim: Claim) -> None:
        key = (claim.batch_id, claim.line)
        if key in self._running:
            # The lease had ended and another router released the line. It is claimed again.
            return
        task = asyncio.create_task(self._line(batch, claim))
        self._running[key] = _Running(claim, batch.tenant, task)

        def ended(_: asyncio.Task[None]) -> None:
            del self._running[key]
            if batch.batch_id in self._exhausted:
                self.look_soon()  # it may have been the last one
            self._wake.set()

        task.add_done_callback(ended)

    async def _line(self, batch: Batch, claim: Claim) -> None:
        """Run a line until it is answered."""
        store = self._store
        request_id = f"{batch.batch_id}-{claim.line}"
        try:
            data = await store.run(store.files.read, batch.input_file_id, claim.start, claim.length)
            line = parse_line(data, batch.endpoint)
            window = self._clock.monotonic() + batch.expires_at - self._clock.time()
            request = LineRequest(
                batch.tenant, batch.key_id, batch.endpoint, line.body, request_id, window
            )
            delay, retries = _FIRST_DELAY, 0
            while True:
                response = await self._response(request)
                verdict = verdict_on(response)
                retries += verdict is Verdict.RETRY
                if verdict is Verdict.ANSWER or retries > _RETRIES:
                    break
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
            content = answer_content(line.custom_id, request_id, response)
            completed = response.status == HTTPStatus.OK
            usage = usage_of(response)
        except ResourceNotFound as error:
            fault = {"code": "input_file_lost", "message": str(error), "line": claim.line}
            content, completed, usage = content_of(None, error=fault), False, None
        except ServingError as error:
            log.warning("a line waits", batch=batch.batch_id, line=claim.line, reason=str(error))
            await self._give_back(claim)
            return
        await self._answers.record(Answer(batch.batch_id, claim.line, completed, content))
        if usage is not None:
            metrics.BATCH_TOKENS.labels("prompt").inc(usage.prompt)
            metrics.BATCH_TOKENS.labels("cached").inc(usage.cached)
            metrics.BATCH_TOKENS.labels("generated").inc(usage.generated)

    async def _response(self, request: LineRequest) -> LineResponse:
        try:
            return await self._send(request)
        except Exception as error:  # noqa: BLE001  a client would get a 500, too
            _log("a line failed", error, request_id=request.request_id)
            return LineResponse(HTTPStatus.INTERNAL_SERVER_ERROR, b'{"error": {}}')

    async def _give_back(self, claim: Claim) -> None:
        await asyncio.sleep(self._settings.interval)
        try:
            await self._store.run(self._store.lines.give_back, [claim])
        except ServingError as error:
            log.warning("a line was not released", line=claim.line, reason=str(error))


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their ends."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _log(event: str, error: Exception, **fields: Any) -> None:
    """Log a failure, with its traceback unless the message says what an operator can do."""
    if isinstance(error, ServingError):
        log.warning(event, reason=str(error), **fields)
    else:
        log.error(event, exc_info=error, **fields)

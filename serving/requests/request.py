"""The life of one request below the edge: admission, a rank, outputs, and resumption.

    admission.enter -> placed on a rank -> outputs ... -> finished
                             ^                |
                             |                v  its group was lost
                      admission.resume <- resume.plan

The consumer sees one unbroken stream. A request that ends early raises one typed error.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from serving.admission.api import Admission, AdmissionRequest
from serving.clock import Clock
from serving.dispatch.dispatcher import Placement
from serving.errors import (
    CancelledByOperator,
    DeadlineExceeded,
    EngineError,
    GroupLost,
    ServingError,
    status_of,
)
from serving.fleet.membership import FleetMembership
from serving.link.block_hashes import ROOT, PromptBlockHashes, adapter_root
from serving.link.protocol import adapter_key
from serving.link.v1 import link_pb2
from serving.request_context import RequestContext, Usage
from serving.requests.batch_turn import BatchTurn
from serving.requests.losses import GroupLosses
from serving.requests.output_buffer import OutputBuffer
from serving.requests.poison import PoisonTracker, Trial
from serving.requests.reasoning_count import ReasoningMarks
from serving.requests.resume import Way, plan
from serving.requests.stream import RequestStream
from serving.requests.token_timings import TokenTimings
from serving.requests.view import NO_POSITIONS, Phase, RequestView
from serving.routing.decision import RoutingRequest
from serving.settings import FleetSettings
from serving.telemetry import metrics
from serving.telemetry.model_counters import PoolCounters
from serving.telemetry.tenants import TenantTokens
from serving.vllm_adapter.errors import as_vllm_error

EXPECTED_OUTPUT_LIMIT = 1024
"""Cap on the output tokens per choice that admission and routing expect. Most answers are far
shorter than max_tokens, which defaults to the rest of the context."""

# Exported as 0 from the start; otherwise Prometheus would not see the first one as an increase.
for _way in Way:
    for _outcome in ("OK", "LOST"):
        metrics.RESUMES.labels(_way.value, _outcome)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A request validated by vLLM's input processor, ready to be sent to a rank."""

    request_id: str
    """The client's request id."""
    work: link_pb2.Submit
    params: SamplingParams
    buffer: OutputBuffer
    context: RequestContext
    deadline: float
    """Deadline, seconds on the router's monotonic clock."""

    @property
    def expected_output(self) -> int:
        """Expected output tokens, over all choices."""
        each = min(self.params.max_tokens or 1, EXPECTED_OUTPUT_LIMIT)
        return int(each * self.params.n)

    @property
    def max_output(self) -> int:
        """Maximum number of output tokens, over all choices."""
        return (self.params.max_tokens or 1) * int(self.params.n)


@dataclass(slots=True)
class RequestServices:
    """Services shared by all requests of a router."""

    admission: Admission
    membership: FleetMembership
    poison: PoisonTracker
    settings: FleetSettings
    clock: Clock
    tenants: TenantTokens
    pools: Mapping[str, PoolCounters] = field(default_factory=dict)
    """Counters of the model's pools, by name."""
    reasoning: ReasoningMarks | None = None
    """Tokens that delimit reasoning. None if unknown."""
    explain_all: bool = False
    """Whether the scores of all routing decisions are kept, not only those of requests that ask for
    an explanation. Can change while requests run."""


class FleetRequest:
    """One request on the fleet."""

    def __init__(self, engine_request: EngineRequest, services: RequestServices) -> None:
        self._request = engine_request
        self._services = services
        context = engine_request.context
        work = engine_request.work
        self._adapter: str | None = None
        """Key of the LoRA adapter, or None if there is none."""
        if work.HasField("adapter"):
            self._adapter = adapter_key(work.adapter.name, work.adapter.digest)
        self._record = context.record
        self._trace = context.record.trace
        self._stream = RequestStream(
            engine_request.work,
            engine_request.buffer,
            TokenTimings(
                services.clock,
                context.record.arrived_at,
                unobserved=context.yielding is not None,
            ),
            expected_output=engine_request.expected_output,
        )
        self._admission_request = AdmissionRequest(
            context=context,
            stream=self._stream,
            routing=self._routing_request(),
            prompt_tokens=len(engine_request.buffer.prompt_token_ids),
            output_tokens=engine_request.expected_output,
            deadline=engine_request.deadline,
            max_output_tokens=engine_request.max_output,
        )
        self._admitted = False
        self._batch_turn: BatchTurn | None = None
        """Turns of a request that belongs to a batch; otherwise None."""
        if context.yielding is not None:
            self._batch_turn = BatchTurn(
                context.yielding, services.admission, self._admission_request, self._give_way
            )
        self._placement: Placement | None = None
        """Current placement. None while the request is not on a rank."""
        self._ended: ServingError | None = None
        """Why the request was ended from outside. None if it was not."""
        self._has_output = False
        """Whether the current rank has sent any output."""
        self._resuming: Way | None = None
        """Resumption in progress, until the first new token. None if none is in progress."""
        self._rank_seconds = 0.0
        """Time on earlier ranks, seconds."""
        self._losses = GroupLosses(services.settings, engine_request.request_id, context.tenant)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the request inside the block: ``begin``, then ``next`` until an output is finished.

        Leaving the block aborts an unfinished request on its rank immediately.

        Raises:
            ServingError: The request failed.
        """
        try:
            with self._timer():
                yield
        except ServingError as error:
            self._end_resumption(status_of(error).reason)
            if self._trace is not None:
                self._trace.end_rank(str(error))
            raise as_vllm_error(error) from error.__cause__
        finally:
            self._end_resumption("CANCELLED")
            self._release()
            if self._trace is not None:
                self._trace.end_rank()
            if self._admitted:
                self._account()

    async def begin(self) -> None:
        """Wait for admission and placement on a rank.

        Raises:
            ServingError: The request was rejected, or no rank accepted it in time.
        """
        if self._trace is not None:
            self._trace.start_admission()
        try:
            placement = await (
                self._services.admission.enter(self._admission_request)
                if self._batch_turn is None
                else self._first_turn(self._batch_turn)
            )
        finally:
            if self._trace is not None:
                self._trace.end_admission()
        self._admitted = True
        self._record.running.append(self)
        self._placed(placement)
        metrics.PROMPT_TOKENS.inc(len(self._request.buffer.prompt_token_ids))

    async def next(self) -> RequestOutput:
        """Return the next output; the last one is ``finished``.

        Raises:
            ServingError: The request failed.
        """
        while True:
            try:
                output = await self._stream.next()
            except (GroupLost, EngineError) as error:
                await self._resume(error)
                continue
            if not self._has_output:
                self._has_output = True
                self._end_resumption("OK")
                if self._trace is not None:
                    self._trace.first_token()
            if output.finished:
                metrics.CACHED_TOKENS.inc(self._request.buffer.cached_tokens)
            return output

    def usage(self) -> Usage:
        """Return the request's usage so far."""
        buffer, placement = self._request.buffer, self._placement
        drafted, accepted = buffer.speculation
        here = 0.0 if placement is None else self._seconds_on(placement)
        return Usage(
            prompt_tokens=len(buffer.prompt_token_ids),
            cached_tokens=buffer.cached_tokens,
            output_tokens=buffer.emitted_tokens,
            reasoning_tokens=self._reasoning_tokens() if self._record.raw_text else 0,
            drafted_tokens=drafted,
            accepted_tokens=accepted,
            rank_seconds=self._rank_seconds + here,
        )

    def _reasoning_tokens(self) -> int:
        buffer, marks = self._request.buffer, self._services.reasoning
        if marks is None:
            return 0
        choices = map(buffer.emitted, range(self._request.params.n))
        return sum(marks.count(buffer.prompt_token_ids, output) for output in choices)

    @property
    def context(self) -> RequestContext:
        """Tenant, priority and record of the request."""
        return self._request.context

    def view(self, positions: Mapping[Any, int] = NO_POSITIONS) -> RequestView:
        """Return the current state.

        Args:
            positions: ``AdmissionController.positions``; without it, the position is unknown.
        """
        request, record, waiting = self._request, self._record, self._admission_request
        phase = Phase.QUEUED
        if self._placement is not None:
            phase = Phase.GENERATING if self._stream.seen_tokens else Phase.PREFILL
        elif self._record.resumes:
            phase = Phase.RESUMING
        elif not self._services.membership.ready:
            phase = Phase.PARKED
        return RequestView(
            number=request.work.request_id,
            request_id=request.request_id,
            context=request.context,
            phase=phase,
            decision=record.decisions[-1] if record.decisions else None,
            waiting_for="" if self._placement is not None else waiting.why,
            position=positions.get(waiting),
            predicted_wait=waiting.predicted,
            prompt_tokens=len(request.buffer.prompt_token_ids),
            cached_tokens=request.buffer.cached_tokens,
            output_tokens=request.buffer.emitted_tokens,
        )

    def cancel(self, reason: str) -> None:
        """End the request with ``CancelledByOperator``, in any state."""
        error = CancelledByOperator(reason)
        turn = self._admission_request.turn
        if self._placement is None and turn is not None and not turn.done():
            turn.set_exception(error)  # the queue drops entries whose turn is done
        self._end(error)

    # -- placement ----------------------------------------------------------------------

    def _routing_request(self) -> RoutingRequest:
        """Return the routing request for the work to be sent next."""
        work, context = self._stream.work, self._request.context
        adapter, root = self._adapter, ROOT
        if adapter is not None:
            root = adapter_root(adapter)
        return RoutingRequest(
            len(work.prompt_token_ids),
            self._stream.outstanding_output,
            prompt=PromptBlockHashes(work.prompt_token_ids, root),
            session_id=context.session_id and f"{context.tenant}/{context.session_id}",
            explain=context.explain or self._services.explain_all,
            adapter=adapter,
        )

    async def _first_turn(self, turn: BatchTurn) -> Placement:
        try:
            return await turn.place(self._require_not_ended)
        except BaseException:
            self._services.admission.give_back(self._admission_request)
            raise

    def _give_way(self) -> None:
        """Leave the rank immediately; the consumer then waits for the next turn."""
        self._release()
        self._stream.fail(_GaveWay("the request gave way to others", planned=True))

    def _placed(self, placement: Placement) -> None:
        self._placement = placement
        self._has_output = False
        services = self._services
        pool = services.membership.pool_of(placement.decision.rank_id.group_id)
        self._stream.timings.sent(placement.sent_at, services.pools.get(pool))
        if self._adapter is not None:
            services.membership.adapters.began(placement.decision.rank_id, self._adapter)

    def _seconds_on(self, placement: Placement) -> float:
        """Return the time on the current rank, seconds.

        For a finished request, the time ends with its last token, because the consumer may read it
        late.
        """
        stream = self._stream
        ended_at = stream.timings.last_at if stream.finished else self._services.clock.monotonic()
        return max(ended_at - placement.sent_at, 0.0)

    def _release(self) -> None:
        """Release the request from its rank, and end its trial."""
        placement, self._placement = self._placement, None
        if placement is not None:
            placement.handle.release(self._stream)
            if self._adapter is not None:
                rank_id = placement.decision.rank_id
                self._services.membership.adapters.ended(rank_id, self._adapter)
            self._rank_seconds += self._seconds_on(placement)
            self._stream.timings.left()
        if self._batch_turn is not None:
            self._batch_turn.leave()
        if self._stream.trial is not None:
            self._stream.trial.end()

    # -- resumption ---------------------------------------------------------------------

    async def _resume(self, error: GroupLost | EngineError) -> None:
        """Continue on another rank after ``error``.

        Raises:
            ServingError: The request cannot be resumed, or cannot be resumed in time.
        """
        request, stream = self._request, self._stream
        stream.timings.lost()
        self._end_resumption("LOST")
        if self._trace is not None:
            self._trace.end_rank(str(error))
        self._report(error)
        self._release()
        if isinstance(error, GroupLost) and error.final:
            raise error
        if not (isinstance(error, GroupLost) and error.planned):
            alone = stream.trial is not None and stream.trial.alone
            self._losses.count(error, stream.seen_tokens, alone=alone)
        self._record.resumes += 1
        following = plan(
            request.work,
            request.params,
            request.buffer,
            attempt=self._record.resumes,
            expected_output=request.expected_output,
        )
        if not isinstance(error, _GaveWay):
            log.info(
                "resuming request on another rank",
                request_id=request.request_id,
                way=following.way.value,
                emitted_tokens=request.buffer.emitted_tokens,
                suspected=self._losses.suspected,
                reason=str(error),
            )
            self._resuming = following.way
        if self._trace is not None:
            self._trace.resumed(following.way.value, request.buffer.emitted_tokens)
        self._require_not_ended()
        stream.restart(following.work, expected_output=following.expected_output)
        if tokens := self._losses.trial_tokens:
            stream.trial = await self._enter_trial(tokens)
        self._admission_request.routing = self._routing_request()
        self._admission_request.isolation = stream.trial
        turn = self._batch_turn
        self._placed(
            await (
                self._services.admission.resume(self._admission_request)
                if turn is None
                else turn.place(self._require_not_ended)
            )
        )
        if self._record.on_resumed is not None and turn is None:
            self._record.on_resumed()

    async def _enter_trial(self, tokens: int) -> Trial:
        """Wait until the request's trial starts.

        Raises:
            DeadlineExceeded: The trial did not start before the deadline.
        """
        left = max(self._request.deadline - self._services.clock.monotonic(), 0)
        try:
            return await self._services.poison.enter(tokens, left)
        except TimeoutError as error:
            raise _deadline_exceeded() from error

    def _report(self, error: GroupLost | EngineError) -> None:
        """Report a failed or draining rank to the membership.

        Without this, the request could be placed there again before the rank's own report arrives.
        """
        if self._placement is None:
            return
        rank_id, handle = self._placement.decision.rank_id, self._placement.handle
        if isinstance(error, EngineError):
            self._services.membership.fault(rank_id, handle, f"engine failed: {error}")
        elif error.refused:
            self._services.membership.drain(rank_id, handle, str(error))

    def _end_resumption(self, outcome: str) -> None:
        """Count the outcome of the resumption in progress, if any."""
        way, self._resuming = self._resuming, None
        if way is not None:
            metrics.RESUMES.labels(way.value, outcome).inc()

    # -- end ----------------------------------------------------------------------------

    def _account(self) -> None:
        """Record the request's token usage and release it from admission."""
        buffer, record = self._request.buffer, self._record
        generated = buffer.emitted_tokens
        self._services.admission.release(
            self._admission_request, generated_tokens=generated, cached_tokens=buffer.cached_tokens
        )
        self._services.tenants.count(
            self._request.context.tenant,
            prompt=len(buffer.prompt_token_ids),
            cached=buffer.cached_tokens,
            generated=generated,
        )
        record.cached_tokens += buffer.cached_tokens
        record.running.remove(self)
        record.ended += self.usage()
        record.first_token_at = record.first_token_at or self._stream.timings.first_at

    @contextmanager
    def _timer(self) -> Iterator[None]:
        """End the request at its deadline, even if the consumer is not reading."""
        left = max(self._request.deadline - self._services.clock.monotonic(), 0)
        timer = asyncio.get_running_loop().call_later(left, self._expire)
        try:
            yield
        finally:
            timer.cancel()

    def _require_not_ended(self) -> None:
        if self._ended is not None:
            raise self._ended

    def _expire(self) -> None:
        self._end(_deadline_exceeded())

    def _end(self, error: ServingError) -> None:
        self._ended = self._admission_request.ended = error
        self._release()  # before the consumer reads the error, so that the rank stops immediately
        self._stream.fail(error)


class _GaveWay(GroupLost):
    """The request of a batch has left its rank to other requests; nothing was lost."""


def _deadline_exceeded() -> DeadlineExceeded:
    return DeadlineExceeded("the request's deadline passed before it finished")

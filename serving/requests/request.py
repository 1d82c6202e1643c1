"""The life of one request in the fleet: its turn, a rank, its outputs; on when that is lost.

    enter the turnstile -> launch on a rank -> outputs … -> finished
                               ^                   |
                               └── plan <── its group was lost

The caller sees one unbroken stream. What ends it early is one typed error.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from vllm.outputs import RequestOutput

from serving.admission.api import Ask, Ticket, Turnstile
from serving.clock import Clock
from serving.dispatch.dispatcher import Placer
from serving.errors import (
    DeadlineExceeded,
    EngineError,
    GroupLost,
    PoisonRequest,
    ServingError,
    status_of,
)
from serving.fleet.membership import Roster
from serving.fleet.rank_handle import MemberKey, RankHandle
from serving.link.block_hashes import PromptNames
from serving.requests.poison import Probation, Quarantine
from serving.requests.prepared import Prepared
from serving.requests.resume import Way, plan
from serving.requests.stream import Pace, RequestStream
from serving.requests.suspicion import Suspicion, Verdict
from serving.routing.decision import Demand, Pick
from serving.settings import FleetSettings
from serving.telemetry import metrics
from serving.telemetry.tenants import TenantTokens
from serving.vllm_adapter.errors import visible

# There from the start: the first one would otherwise be no increase to Prometheus.
for _way in Way:
    for _outcome in ("OK", "LOST"):
        metrics.RESUMES.labels(_way.value, _outcome)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class FleetRequest:
    """One request."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        placer: Placer,
        turnstile: Turnstile,
        quarantine: Quarantine,
        roster: Roster,
        settings: FleetSettings,
        clock: Clock,
        tenants: TenantTokens,
    ) -> None:
        self._prepared = prepared
        self._placer = placer
        self._turnstile = turnstile
        self._quarantine = quarantine
        self._roster = roster
        self._settings = settings
        self._clock = clock
        self._tenants = tenants
        self._stream = RequestStream(
            prepared.work,
            prepared.transcript,
            Pace(clock, prepared.caller.journal.arrived_at),
            expected_output=prepared.expected_output,
        )
        self._prompt = PromptNames(prepared.work.prompt_token_ids)
        self._pick: Pick | None = None
        self._handle: RankHandle | None = None
        self._ticket: Ticket | None = None
        self._expired = False
        self._trace = prepared.caller.journal.trace
        self._speaking = False
        """Whether anything came from the present rank."""
        self._resuming: Way | None = None
        """How it goes on, while no new token has come since its group was lost."""
        self._losses = 0
        """Groups that were lost under it without anybody's intention."""
        self._suspicion = Suspicion()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the request inside: ``begin``, then ``next`` until its output is finished.

        Leaving it aborts what is not finished on the rank, at once.

        Raises:
            ServingError: it failed.
        """
        try:
            with self._timer():
                yield
        except ServingError as error:
            self._resumed(status_of(error).reason)
            self._trace.left(str(error))
            raise visible(error) from error.__cause__
        finally:
            self._resumed("CANCELLED")
            self._release()
            self._trace.left()
            self._note_end()

    async def begin(self) -> None:
        """Wait for the request's turn."""
        self._trace.waits()
        try:
            self._ticket = await self._turnstile.enter(self._ask(), self._launch)
        finally:
            self._trace.let_in()
        metrics.PROMPT_TOKENS.inc(len(self._prepared.transcript.prompt_token_ids))

    async def next(self) -> RequestOutput:
        """Return the next output; the last one is ``finished``."""
        while True:
            try:
                output = await self._stream.next()
            except (GroupLost, EngineError) as error:
                await self._go_on(error)
                continue
            if not self._speaking:
                self._first_token()
            if output.finished:
                metrics.CACHED_TOKENS.inc(self._prepared.transcript.cached_tokens)
            return output

    def _first_token(self) -> None:
        """Note that the present rank has sent its first output."""
        self._speaking = True
        self._resumed("OK")
        self._trace.first_token()

    def _note_end(self) -> None:
        """Count what the request used."""
        if self._ticket is None:
            return
        transcript, caller = self._prepared.transcript, self._prepared.caller
        self._ticket.release(generated_tokens=transcript.emitted_tokens)
        self._tenants.count(
            caller.tenant,
            prompt=len(transcript.prompt_token_ids),
            cached=transcript.cached_tokens,
            generated=transcript.emitted_tokens,
        )
        journal = caller.journal
        journal.cached_tokens += transcript.cached_tokens
        journal.first_token_at = journal.first_token_at or self._stream.pace.first_at

    def _resumed(self, outcome: str) -> None:
        """Count how the resumption that is going on ended, if one is."""
        way, self._resuming = self._resuming, None
        if way is not None:
            metrics.RESUMES.labels(way.value, outcome).inc()

    def _ask(self) -> Ask:
        prepared = self._prepared
        return Ask(
            request_id=prepared.request_id,
            caller=prepared.caller,
            prompt_tokens=len(prepared.transcript.prompt_token_ids),
            output_tokens=prepared.expected_output,
            deadline=prepared.deadline,
        )

    def _launch(self) -> str | None:
        if self._expired:
            raise _too_late()
        stream = self._stream
        caller = self._prepared.caller
        demand = Demand(
            len(stream.work.prompt_token_ids),
            stream.outstanding_output,
            prompt=self._prompt,
            session_id=caller.session_id and f"{caller.tenant}/{caller.session_id}",
            avoid=self._quarantine.occupied if stream.probation is not None else (),
            explain=caller.explain,
        )
        self._trace.tries(stream.work.trace_headers)
        placed = self._placer.place(stream, demand)
        if isinstance(placed, str):
            return placed
        pick, self._handle = placed
        if stream.probation is not None:
            self._quarantine.placed(stream.probation, (pick.group_id, pick.epoch))
        self._pick, self._speaking = pick, False
        caller.journal.picks.append(pick)
        self._trace.placed(pick.group_id, pick.rank, pick.reason, pick.matched_tokens)
        stream.pace.sent()
        return None

    async def _go_on(self, error: GroupLost | EngineError) -> None:
        """Continue on another rank after ``error``.

        Raises:
            ServingError: it cannot go on, or not in time.
        """
        prepared, lost = self._prepared, self._stream
        lost.pace.lost()
        self._resumed("LOST")
        self._trace.left(str(error))
        self._report(error)
        self._release()
        if isinstance(error, GroupLost) and error.final:
            raise error
        if not (isinstance(error, GroupLost) and error.planned):
            self._count_loss(error)
        journal = prepared.caller.journal
        journal.resumes += 1
        following = plan(
            prepared.work,
            prepared.params,
            prepared.transcript,
            attempt=journal.resumes,
            expected_output=prepared.expected_output,
        )
        log.info(
            "request goes on elsewhere",
            request_id=prepared.request_id,
            way=following.way.value,
            emitted_tokens=prepared.transcript.emitted_tokens,
            suspected=bool(self._suspicion.losses),
            reason=str(error),
        )
        self._resuming = following.way
        self._trace.resumes(following.way.value, prepared.transcript.emitted_tokens)
        self._stream = RequestStream(
            following.work,
            prepared.transcript,
            lost.pace,
            expected_output=following.expected_output,
        )
        self._prompt = PromptNames(following.work.prompt_token_ids)
        assert self._ticket is not None
        if tokens := self._suspicion.probation(self._settings):
            self._stream.probation = await self._probation(tokens)
        await self._ticket.again(self._launch)

    async def _probation(self, tokens: int) -> Probation:
        """Wait until no other suspect is in the way."""
        left = max(self._prepared.deadline - self._clock.monotonic(), 0)
        try:
            return await self._quarantine.enter(tokens, left)
        except TimeoutError as error:
            raise _too_late() from error

    def _report(self, error: GroupLost | EngineError) -> None:
        """Tell the roster what the rank said of itself: its own report would come too late, and
        we might pick it again.
        """
        pick, handle = self._pick, self._handle
        if pick is None or handle is None:
            return
        key = MemberKey(pick.group_id, pick.epoch, pick.rank)
        if isinstance(error, EngineError):
            self._roster.fault(key, handle, f"its engine failed: {error}")
        elif error.refused:
            self._roster.drain(key, handle, str(error))

    def _count_loss(self, error: ServingError) -> None:
        """Note that a group died under the request.

        Raises:
            PoisonRequest: it looks like the cause.
            GroupLost: it was tried often enough.
        """
        self._losses += 1
        probation = self._stream.probation
        self._suspicion, verdict = self._suspicion.after_loss(
            self._stream.seen_tokens,
            self._settings,
            alone=probation is not None and probation.alone,
        )
        if verdict is Verdict.POISON:
            log.error(
                "request refused: groups die of it",
                request_id=self._prepared.request_id,
                tenant=self._prepared.caller.tenant,
                losses=self._losses,
            )
            raise PoisonRequest(
                f"{self._suspicion.losses} groups were lost just after they had begun this "
                "request; it is not tried again"
            ) from error
        if self._losses > self._settings.max_resumes:
            raise GroupLost(
                f"{self._losses} groups were lost under this request (fleet.max_resumes is "
                f"{self._settings.max_resumes}); it can be sent again"
            ) from error

    def _release(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.release(self._stream)
        if self._stream.probation is not None:
            self._stream.probation.end()

    @contextmanager
    def _timer(self) -> Iterator[None]:
        """End the request when its deadline passes, also when its caller is slow to look."""
        left = max(self._prepared.deadline - self._clock.monotonic(), 0)
        timer = asyncio.get_running_loop().call_later(left, self._expire)
        try:
            yield
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._expired = True
        self._release()  # first: the rank stops at once
        self._stream.fail(_too_late())


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("the request's deadline passed before it was finished")

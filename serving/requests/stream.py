"""One request between its caller and a rank that runs it."""

import asyncio

from vllm.outputs import RequestOutput

from serving.clock import Clock
from serving.errors import EngineError, GroupLost, ServingError
from serving.link.v1 import link_pb2
from serving.requests.output_buffer import DivergedError, Transcript
from serving.requests.poison import Probation
from serving.telemetry import metrics
from serving.vllm_adapter.errors import error_of

_ABORT = link_pb2.ChoiceDelta.ABORT


class RequestStream:
    """One request on one rank: collects its deltas and wakes its caller at most once a frame.

    Memory is bounded by the request itself: what the caller has not taken merges in the
    transcript, which never holds more than the prompt and max_tokens for each choice. When the
    rank is lost, the transcript goes on in the stream of the next one.
    """

    __slots__ = (
        "_error",
        "_expected_output",
        "_loop",
        "_seen_tokens",
        "_waiter",
        "outstanding_tokens",
        "pace",
        "probation",
        "request_id",
        "transcript",
        "work",
    )

    def __init__(
        self,
        work: link_pb2.Submit,
        transcript: Transcript,
        pace: "Pace",
        *,
        expected_output: int,
    ) -> None:
        self.work = work
        self.request_id: str = work.request_id
        """The id that router and rank use."""
        self.transcript = transcript
        self.pace = pace
        self.probation: Probation | None = None
        """Of a suspect; told of what comes, and of the end."""
        self._error: ServingError | None = None
        self._expected_output = expected_output
        self._seen_tokens = 0
        self.outstanding_tokens = len(work.prompt_token_ids) + max(expected_output, 1)
        """Prompt and output tokens that the rank has still to compute."""
        # Asked for once: Python 3.11 asks the system for the process's number each time.
        self._loop: asyncio.AbstractEventLoop | None = None
        # One caller waits; a bare future is half the price of an Event.
        self._waiter: asyncio.Future[None] | None = None

    @property
    def finished(self) -> bool:
        """Whether the rank is done with it, well."""
        return self.transcript.finished

    @property
    def done(self) -> bool:
        """Whether nothing more can come."""
        return self.transcript.finished or self._error is not None

    @property
    def seen_tokens(self) -> int:
        """Tokens that this rank has generated, those of a replay included."""
        return self._seen_tokens

    @property
    def outstanding_output(self) -> int:
        """Tokens that are expected to come, over all choices."""
        return max(self._expected_output - self._seen_tokens, 1)

    def receive(self, delta: link_pb2.Delta) -> None:
        """Take in a delta from the rank. Ignored once the request is done."""
        transcript = self.transcript
        if self._error is not None or transcript.finished:
            return
        tokens = transcript.add(delta)
        if tokens is not None:
            seen, takeable = tokens, transcript.gives_parts
        elif (applied := self._apply(delta)) is not None:
            seen, tokens = applied
            takeable = transcript.takeable
        else:
            return
        self._seen_tokens += seen
        left = self._expected_output - self._seen_tokens
        self.outstanding_tokens = 0 if transcript.finished else max(left, 1)
        if tokens:
            self.pace.count(tokens)
        if self.probation is not None:
            self._prove(self.probation)
        if takeable:
            self._wake()

    def _apply(self, delta: link_pb2.Delta) -> tuple[int, int] | None:
        """Take in a delta of any kind; returns its tokens and how many are new; none if it fails.

        The request has failed then.
        """
        if delta.HasField("error"):
            self.fail(error_of(delta.error))
            return None
        seen = 0
        for choice in delta.choices:
            if choice.finish_reason == _ABORT:
                # Nobody here asked for that: we stop listening before we abort.
                self.fail(GroupLost("the rank ended the request; the request can be sent again"))
                return None
            seen += len(choice.token_ids)
        try:
            return seen, self.transcript.apply(delta)
        except DivergedError as error:
            self.fail(
                GroupLost(
                    f"its group was lost, and another one did not repeat the answer ({error}); "
                    "the request can be sent again",
                    final=True,
                )
            )
        except ValueError as error:
            self.fail(EngineError(f"the rank sent a delta that does not fit: {error}"))
        return None

    def fail(self, error: ServingError) -> None:
        """End the request with an error; what was emitted before is still given out first."""
        if not self.done:
            self._error = error
            self.outstanding_tokens = 0
            self._wake()
            if self.probation is not None:
                self.probation.end()

    async def next(self) -> RequestOutput:
        """Wait for the next output.

        Raises:
            ServingError: the request failed.
        """
        while True:
            output = self.transcript.take()
            if output is not None:
                return output
            if self._error is not None:
                raise self._error
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _prove(self, probation: Probation) -> None:
        probation.progress(self._seen_tokens)
        if self.transcript.finished:
            probation.end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Pace:
    """When a request's tokens came, over all ranks that it ran on; feeds the latency metrics."""

    __slots__ = ("_arrived_at", "_clock", "_last_at", "_lost_at", "_sent_at", "first_at")

    def __init__(self, clock: Clock, arrived_at: float | None = None) -> None:
        """Begin now, or when the request arrived at the router."""
        self._clock = clock
        now = clock.monotonic()
        self._arrived_at = now if arrived_at is None else arrived_at
        self._sent_at = self._last_at = now
        self._lost_at: float | None = None
        self.first_at: float | None = None

    def sent(self) -> None:
        """Note that a rank got the request just now."""
        self._sent_at = self._clock.monotonic()

    def count(self, tokens: int) -> None:
        """Note that so many tokens came just now."""
        now = self._clock.monotonic()
        if self.first_at is None:
            self.first_at = now
            metrics.TIME_TO_FIRST_TOKEN.observe(now - self._arrived_at)
            metrics.RANK_TIME_TO_FIRST_TOKEN.observe(now - self._sent_at)
        else:
            metrics.INTER_TOKEN_LATENCY.observe((now - self._last_at) / tokens)
        if self._lost_at is not None:
            metrics.RESUME_SECONDS.observe(now - self._lost_at)
            self._lost_at = None
        self._last_at = now
        metrics.GENERATED_TOKENS.inc(tokens)

    def lost(self) -> None:
        """Note that the group was lost; the next new token ends the gap."""
        if self._lost_at is None:
            self._lost_at = self._clock.monotonic()

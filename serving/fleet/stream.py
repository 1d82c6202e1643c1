"""One request between its caller and the rank that runs it."""

import asyncio

from vllm.outputs import RequestOutput

from serving.clock import Clock
from serving.errors import EngineError, ServingError
from serving.fleet.errors import error_of, visible
from serving.fleet.outputs import Transcript
from serving.link.v1 import link_pb2
from serving.telemetry import metrics

EXPECTED_OUTPUT_LIMIT = 1024
"""Most output tokens that a choice counts for in routing: clients rarely use up a large
max_tokens, and one that names none must not look like the end of the world."""


class RequestStream:
    """Holds the request, collects its deltas, and wakes its caller at most once a frame.

    Memory is bounded by the request itself: what the caller has not taken merges in the
    transcript, which never holds more than the prompt and max_tokens for each choice.
    """

    __slots__ = (
        "_clock",
        "_error",
        "_expected_output",
        "_last_at",
        "_ready",
        "_submitted_at",
        "first_at",
        "transcript",
        "work",
    )

    def __init__(
        self,
        work: link_pb2.Submit,
        transcript: Transcript,
        clock: Clock,
        *,
        max_tokens: int,
        choices: int = 1,
    ) -> None:
        self.work = work
        self.transcript = transcript
        self.first_at: float | None = None
        self._clock = clock
        self._submitted_at = clock.monotonic()
        self._last_at = self._submitted_at
        self._error: ServingError | None = None
        self._expected_output = min(max_tokens, EXPECTED_OUTPUT_LIMIT) * choices
        self._ready = asyncio.Event()

    @property
    def request_id(self) -> str:
        """The id that router and rank use."""
        return self.work.request_id

    @property
    def expected_output(self) -> int:
        """Output tokens to expect over all choices."""
        return self._expected_output

    @property
    def done(self) -> bool:
        """Whether nothing more can come."""
        return self.transcript.finished or self._error is not None

    @property
    def outstanding_tokens(self) -> int:
        """Prompt and output tokens that the rank has still to compute."""
        if self.done:
            return 0
        prompt = 0 if self.transcript.started else len(self.transcript.prompt_token_ids)
        return prompt + max(self._expected_output - self.transcript.emitted_tokens, 1)

    def receive(self, delta: link_pb2.Delta) -> None:
        """Take in a delta from the rank. Ignored once the request is done."""
        if self.done:
            return
        if delta.HasField("error"):
            self.fail(error_of(delta.error))
            return
        try:
            tokens = self.transcript.apply(delta)
        except ValueError as error:
            self.fail(EngineError(f"the rank sent a delta that does not fit: {error}"))
            return
        if tokens:
            self._measure(tokens)
        if self.transcript.takeable:
            self._ready.set()

    def fail(self, error: ServingError) -> None:
        """End the request with an error; what was emitted before is still given out first."""
        if not self.done:
            self._error = visible(error)
            self._ready.set()

    async def next(self) -> RequestOutput:
        """Wait for the next output.

        Raises:
            ServingError: the request failed.
        """
        while True:
            self._ready.clear()
            output = self.transcript.take()
            if output is not None:
                return output
            if self._error is not None:
                raise self._error
            await self._ready.wait()

    def _measure(self, tokens: int) -> None:
        now = self._clock.monotonic()
        if self.first_at is None:
            self.first_at = now
            metrics.TIME_TO_FIRST_TOKEN.observe(now - self._submitted_at)
        else:
            metrics.INTER_TOKEN_LATENCY.observe((now - self._last_at) / tokens)
        self._last_at = now
        metrics.GENERATED_TOKENS.inc(tokens)

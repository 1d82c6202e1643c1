"""The stream of one request: receives deltas from ranks and returns outputs to the consumer."""

import asyncio

from vllm.outputs import RequestOutput

from serving.errors import EngineError, GroupLost, ServingError
from serving.link.v1 import link_pb2
from serving.requests.choice_buffer import DivergedError
from serving.requests.output_buffer import OutputBuffer
from serving.requests.poison import Trial
from serving.requests.token_timings import TokenTimings
from serving.vllm_adapter.errors import error_of

_ABORT = link_pb2.ChoiceDelta.ABORT


class RequestStream:
    """One request across the ranks it runs on; wakes the consumer at most once per frame.

    The request bounds the memory use: outputs that the consumer has not taken are merged in the
    buffer, which holds at most the prompt and max_tokens for each choice. After a rank is lost,
    ``restart`` prepares the stream for the next one and keeps the buffer and the timings.
    """

    __slots__ = (
        "_error",
        "_expected_output",
        "_loop",
        "_seen_tokens",
        "_waiter",
        "buffer",
        "outstanding_tokens",
        "request_id",
        "timings",
        "trial",
        "work",
    )

    def __init__(
        self,
        work: link_pb2.Submit,
        buffer: OutputBuffer,
        timings: TokenTimings,
        *,
        expected_output: int,
    ) -> None:
        """Prepare the stream for its first rank.

        Args:
            work: The message for the rank.
            buffer: Collects the output of the ranks.
            timings: Records the times of new tokens.
            expected_output: Expected output tokens, over all choices.
        """
        self.buffer = buffer
        self.timings = timings
        self.trial: Trial | None = None
        """The request's trial, while it is suspected of killing groups; otherwise None."""
        # Looked up once, because Python 3.11 makes a system call for each lookup.
        self._loop: asyncio.AbstractEventLoop | None = None
        # There is only one consumer, and a bare future costs half as much as an Event.
        self._waiter: asyncio.Future[None] | None = None
        self.restart(work, expected_output=expected_output)

    def restart(self, work: link_pb2.Submit, *, expected_output: int) -> None:
        """Prepare the stream for its next rank; the previous rank must have released it.

        Args:
            work: The message for the rank, with a new request id.
            expected_output: Expected output tokens from the rank, over all choices.
        """
        self.work = work
        self.request_id: str = work.request_id
        """The request id used between router and rank."""
        self.trial = None
        self._error: ServingError | None = None
        self._expected_output = expected_output
        self._seen_tokens = 0
        self.outstanding_tokens = len(work.prompt_token_ids) + max(expected_output, 1)
        """Prompt and output tokens that the rank still has to compute."""

    @property
    def finished(self) -> bool:
        """Whether the rank completed the request."""
        return self.buffer.finished

    @property
    def done(self) -> bool:
        """Whether the request finished or failed, so that no more output is expected."""
        return self.buffer.finished or self._error is not None

    @property
    def seen_tokens(self) -> int:
        """Tokens that the current rank has generated, including replayed ones."""
        return self._seen_tokens

    @property
    def outstanding_output(self) -> int:
        """Expected output tokens not received yet, over all choices; at least 1."""
        return max(self._expected_output - self._seen_tokens, 1)

    @property
    def completed(self) -> list[int]:
        """Choices that have ended without the rank's knowledge; the link removes them."""
        return self.buffer.completed

    def receive(self, delta: link_pb2.Delta) -> bool:
        """Process a delta from the rank; see the protocol. Ignored once the request is done."""
        buffer = self.buffer
        if self.done:
            return True
        tokens = buffer.add(delta)
        if tokens is not None:
            seen, takeable = tokens, buffer.incremental
        elif (applied := self._apply(delta)) is not None:
            seen, tokens = applied
            takeable = buffer.takeable
        else:
            return True
        self._seen_tokens += seen
        left = self._expected_output - self._seen_tokens
        self.outstanding_tokens = 0 if buffer.finished else max(left, 1)
        if tokens:
            self.timings.count(tokens)
        if self.trial is not None:
            self._update(self.trial)
        if takeable:
            self._wake()
        return buffer.finished or bool(buffer.completed)

    def _apply(self, delta: link_pb2.Delta) -> tuple[int, int] | None:
        """Apply a delta of any kind.

        Returns:
            The number of tokens in the delta, and how many of them are new; None if the request
            failed.
        """
        if delta.HasField("error"):
            self.fail(error_of(delta.error))
            return None
        seen = 0
        for choice in delta.choices:
            if choice.finish_reason == _ABORT:
                # This router releases a request before aborting it, so the rank must have aborted
                # it.
                self.fail(GroupLost("the rank aborted the request; the request can be retried"))
                return None
            seen += len(choice.token_ids)
        try:
            return seen, self.buffer.apply(delta)
        except DivergedError as error:
            self.fail(
                GroupLost(
                    f"the group was lost, and the replay on another group differed ({error}); "
                    "the request can be retried",
                    final=True,
                )
            )
        except ValueError as error:
            self.fail(EngineError(f"the rank sent an invalid delta: {error}"))
        return None

    def fail(self, error: ServingError) -> None:
        """End the request with an error, raised once the buffered outputs have been taken."""
        if not self.done:
            self._error = error
            self.outstanding_tokens = 0
            self._wake()
            if self.trial is not None:
                self.trial.end()

    async def next(self) -> RequestOutput:
        """Wait for the next output.

        Raises:
            ServingError: The request failed.
        """
        if self.buffer.backlog:
            await asyncio.sleep(0)
        while True:
            while self.buffer.unconverted:
                self.buffer.convert_some()
                await asyncio.sleep(0)
            output = self.buffer.take()
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

    def _update(self, trial: Trial) -> None:
        trial.progress(self._seen_tokens)
        if self.buffer.finished:
            trial.end()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

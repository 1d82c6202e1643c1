"""Converts link deltas to vLLM's ``RequestOutput``, as vLLM's own output processor emits it.

An ``OutputBuffer`` keeps the prompt and one ``ChoiceBuffer`` per choice, which holds everything
that the choice has emitted and how much of it the consumer has taken. Deltas that arrive while the
consumer is busy are merged, and a resumption reads the prompt and the emitted token ids from here.
"""

from collections import deque

from vllm.logprobs import FlatLogprobs, PromptLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike

from serving.link.v1 import link_pb2
from serving.requests.choice_buffer import ChoiceBuffer
from serving.requests.logprobs import check_logprobs, convert_some
from serving.vllm_adapter.detokenizer import CandidateTexts, TextStream, candidate_texts


class OutputBuffer:
    """The prompt and the emitted output of one request."""

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        output_kind: RequestOutputKind,
        prompt: str | None = None,
        *,
        tokenizer: TokenizerLike | None = None,
        stream_interval: int = 1,
    ) -> None:
        """Start without output.

        Args:
            request_id: The client's request id, set on the outputs.
            prompt_token_ids: The prompt, [tokens].
            params: Sampling parameters, validated by vLLM.
            output_kind: Kind of outputs that ``take`` returns.
            prompt: Text of the prompt, set on the outputs. None if unknown.
            tokenizer: The model's tokenizer. If None, outputs have no text.
            stream_interval: Minimum number of tokens of a choice in an output, except for the first
                and the last one; the request can ask for a larger minimum.
        """
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.prompt = prompt
        self.started = False
        self.finished = False
        self.cached_tokens = 0
        self._params = params
        self._kind = output_kind
        self.incremental = output_kind is not RequestOutputKind.FINAL_ONLY
        """Whether the consumer takes outputs before the request is finished."""
        delta = output_kind is RequestOutputKind.DELTA
        self._tokenizer = tokenizer if params.detokenize else None
        self._choices = [
            ChoiceBuffer(
                index,
                params,
                None if self._tokenizer is None else self._make_text,
                delta=delta,
                interval=max(stream_interval, params.stream_interval or 1) if delta else 1,
            )
            for index in range(params.n)
        ]
        self.completed: list[int] = []
        """Choices that have ended without the rank's knowledge; the link informs the rank and
        removes them."""
        self._prompt_logprobs: PromptLogprobs | None = None
        if params.prompt_logprobs is not None:
            self._prompt_logprobs = FlatLogprobs() if params.flat_logprobs else []
        self.unconverted: deque[link_pb2.PositionLogprobs] = deque()
        """Received log-probabilities of the prompt that ``convert_some`` has not converted yet."""
        self._finish_taken = False
        self.backlog = False
        """Whether output remains after the last ``take``."""

    def _make_text(self) -> TextStream:
        assert self._tokenizer is not None
        return TextStream(self._tokenizer, self.prompt_token_ids, self._params)

    def _candidates(self) -> CandidateTexts | None:
        return None if self._tokenizer is None else candidate_texts(self._tokenizer)

    def convert_some(self) -> None:
        """Convert the log-probabilities of some positions of the prompt; takes about 1 ms."""
        assert self._prompt_logprobs is not None
        convert_some(self.unconverted, self._prompt_logprobs, self._candidates())

    @property
    def emitted_tokens(self) -> int:
        """Number of emitted tokens, over all choices."""
        total = 0
        for choice in self._choices:
            total += len(choice.token_ids)
        return total

    @property
    def speculation(self) -> tuple[int, int]:
        """Drafted and accepted tokens of the finished choices."""
        drafted = accepted = 0
        for choice in self._choices:
            drafted += choice.drafted_tokens
            accepted += choice.accepted_tokens
        return drafted, accepted

    def rewind(self) -> None:
        """Expect a replay from the start: deltas are compared with the emitted output and skipped.

        Finished choices stay finished and must end the same way in the replay.
        """
        for choice in self._choices:
            choice.rewind()

    def emitted(self, index: int) -> list[int]:
        """Return the emitted token ids of choice ``index``, [tokens]."""
        return self._choices[index].token_ids

    @property
    def takeable(self) -> bool:
        """Whether ``take`` would return an output."""
        if self.finished and not self._finish_taken:
            return True
        if not self.incremental:
            return False
        for choice in self._choices:  # noqa: SIM110  any() costs more than everything else here
            if choice.has_new_output:
                return True
        return False

    def add(self, delta: link_pb2.Delta) -> int | None:
        """Append a delta if it only continues one plain choice; otherwise do nothing.

        This is the fast path for nearly all deltas.

        Returns:
            The number of new tokens; None if the delta needs ``apply``.
        """
        choices = delta.choices
        if len(choices) != 1 or delta.finished:
            return None
        (choice,) = choices
        index = choice.index
        if index >= len(self._choices) or choice.finish_reason:
            return None
        known = self._choices[index]
        return known.add(choice) if known.plain else None

    def apply(self, delta: link_pb2.Delta) -> int:
        """Apply a delta of any kind; return the number of new tokens.

        Raises:
            ValueError: The delta has a choice that was not requested, or its log-probabilities
                do not match its tokens; nothing was applied.
            DivergedError: The delta differs from the output that a replay must repeat; the
                request cannot continue.
        """
        known, choices = self._choices, delta.choices
        has_logprobs = known[0].logprobs is not None
        for choice in choices:
            if choice.index >= len(known):
                raise ValueError(f"choice {choice.index}, but only {len(known)} requested")
            if has_logprobs:
                check_logprobs(choice)
        if not self.started:
            self._start(delta)
        tokens = 0
        ended = delta.finished
        for choice in choices:
            one = known[choice.index]
            tokens += one.apply(choice)
            if one.completed:
                one.completed = False
                self.completed.append(choice.index)
            ended |= one.finish_reason is not None
        if ended:
            self._end(rank_finished=delta.finished)
        return tokens

    def _start(self, delta: link_pb2.Delta) -> None:
        """Read the fields that only the first delta contains."""
        self.started = True
        self.cached_tokens = delta.cached_tokens
        if self._choices[0].logprobs is not None:
            candidates = self._candidates()
            for choice in self._choices:
                choice.candidates = candidates
        if self._prompt_logprobs is not None:
            self.unconverted.extend(delta.prompt_logprobs)

    def _end(self, *, rank_finished: bool) -> None:
        """Finish the request if all its choices have ended, or the rank has finished it."""
        known = self._choices
        if rank_finished:
            for choice in known:
                choice.end()
        self.finished = all(choice.finish_reason is not None for choice in known)

    def take(self) -> RequestOutput | None:
        """Return the output not taken yet, in the requested kind; None if there is none."""
        if not self.takeable:
            return None
        while self.unconverted:
            self.convert_some()
        delta = self._kind is RequestOutputKind.DELTA
        whole = not self.incremental
        outputs: list[CompletionOutput] = []
        self.backlog = False
        for choice in self._choices:  # not generators: this code runs for every token
            if choice.has_new_output or whole:
                outputs.append(choice.take())
                self.backlog |= choice.has_new_output
        finished = self._finish_taken = self.finished and not self.backlog
        prompt_logprobs = self._prompt_logprobs
        if delta and prompt_logprobs:
            # Returned once, as vLLM does; afterwards an empty list means "requested, returned".
            self._prompt_logprobs = []
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            prompt_logprobs=prompt_logprobs,
            outputs=outputs,
            finished=finished,
            num_cached_tokens=self.cached_tokens,
        )

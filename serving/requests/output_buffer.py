"""Converts link deltas to vLLM's ``RequestOutput``, as vLLM's own output processor emits it.

An ``OutputBuffer`` keeps everything that a request has emitted, and how much of it the consumer
has taken. Deltas that arrive while the consumer is busy are merged, and a resumption reads the
prompt and the emitted token ids from here.
"""

from vllm.logprobs import FlatLogprobs, Logprob, PromptLogprobs, SampleLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from serving.link.v1 import link_pb2

_FINISH_REASONS: dict[int, str] = {
    link_pb2.ChoiceDelta.STOP: "stop",
    link_pb2.ChoiceDelta.LENGTH: "length",
    link_pb2.ChoiceDelta.ABORT: "abort",
    link_pb2.ChoiceDelta.ERROR: "error",
    link_pb2.ChoiceDelta.REPETITION: "repetition",
}
"""Texts of ``vllm.v1.engine.FinishReason`` by link value."""


class DivergedError(ValueError):
    """A replay generated output that differs from what was already emitted."""


class _Choice:
    """One of the request's ``n`` choices."""

    __slots__ = (
        "cumulative_logprob",
        "detokenize",
        "finish_reason",
        "has_new_output",
        "index",
        "logprobs",
        "plain",
        "replayed_text",
        "replayed_tokens",
        "stop_reason",
        "taken_texts",
        "taken_tokens",
        "texts",
        "token_ids",
    )

    def __init__(self, index: int, params: SamplingParams) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.texts: list[str] = []
        self.logprobs: SampleLogprobs | None = None
        self.cumulative_logprob: float | None = None
        if params.num_logprobs is not None:
            self.logprobs = FlatLogprobs() if params.flat_logprobs else []
            self.cumulative_logprob = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.taken_tokens = 0
        self.taken_texts = 0
        self.has_new_output = False
        self.detokenize = params.detokenize
        # Progress of a replay that has not reached the end of the emitted output; None: no replay.
        self.replayed_tokens: int | None = None
        self.replayed_text: str | None = None
        self.plain = False
        """Whether the next delta can be appended without further checks."""

    def rewind(self) -> None:
        self.plain = False
        self.replayed_tokens = 0
        self.replayed_text = ""

    def apply(self, delta: link_pb2.ChoiceDelta) -> int:
        """Apply a delta of any kind; return the number of new tokens."""
        before = len(self.token_ids)
        self._apply(delta)
        self.plain = (
            self.logprobs is None
            and self.finish_reason is None
            and self.replayed_tokens is None
            and self.replayed_text is None
        )
        return len(self.token_ids) - before

    def add(self, delta: link_pb2.ChoiceDelta) -> int:
        """Append a delta without a finish reason to a ``plain`` choice; return its token count."""
        token_ids, text = delta.token_ids, delta.text
        self.token_ids.extend(token_ids)
        if text:
            self.texts.append(text)
        self.has_new_output = True
        return len(token_ids)

    def _apply(self, delta: link_pb2.ChoiceDelta) -> None:
        known = self._known_tokens(delta)
        text = self._new_text(delta.text)
        if self.replayed_tokens is not None and delta.finish_reason and not self.finish_reason:
            raise DivergedError(
                f"it ended after {self.replayed_tokens} of {len(self.token_ids)} sent tokens",
            )
        if self.finish_reason is not None:
            return  # already finished before the group was lost; the replay matches
        if known and known == len(delta.token_ids) and not text and not delta.finish_reason:
            return  # the replay repeated emitted output
        self.has_new_output = True
        self.token_ids.extend(delta.token_ids[known:])
        if text:
            self.texts.append(text)
        if self.logprobs is not None:
            for position in delta.logprobs[known:]:
                self.logprobs.append(_candidates(position, detokenize=self.detokenize))
                # The chosen token comes first.
                self.cumulative_logprob = (self.cumulative_logprob or 0.0) + position.logprobs[0]
        if delta.finish_reason:
            self.finish_reason = _FINISH_REASONS.get(delta.finish_reason, "error")
            match delta.WhichOneof("stop_reason"):
                case "stop_string":
                    self.stop_reason = delta.stop_string
                case "stop_token_id":
                    self.stop_reason = delta.stop_token_id

    def _known_tokens(self, delta: link_pb2.ChoiceDelta) -> int:
        """Return how many of the delta's tokens were emitted before the group was lost.

        Raises:
            DivergedError: The tokens differ.
        """
        if self.replayed_tokens is None:
            return 0
        begin = self.replayed_tokens
        expected = self.token_ids[begin : begin + len(delta.token_ids)]
        if expected != delta.token_ids[: len(expected)] or (
            self.finish_reason and len(expected) < len(delta.token_ids)
        ):
            raise DivergedError(f"tokens differ from position {begin}")
        self.replayed_tokens += len(expected)
        if self.replayed_tokens == len(self.token_ids) and not self.finish_reason:
            self.replayed_tokens = None
        return len(expected)

    def _new_text(self, text: str) -> str:
        """Return the part of the text that was not emitted before the group was lost.

        Raises:
            DivergedError: The text differs.
        """
        if self.replayed_text is None:
            return text
        self.replayed_text += text
        known = "".join(self.texts)
        if not (known.startswith(self.replayed_text) or self.replayed_text.startswith(known)):
            raise DivergedError(f"text differs within the first {len(known)} characters")
        if len(self.replayed_text) < len(known):
            return ""
        fresh, self.replayed_text = self.replayed_text[len(known) :], None
        return fresh

    def take(self, *, delta: bool) -> CompletionOutput:
        first_token, first_text = (self.taken_tokens, self.taken_texts) if delta else (0, 0)
        texts = self.texts
        text = texts[-1] if len(texts) == first_text + 1 else "".join(texts[first_text:])
        if not delta:
            self.texts = [text]
        self.taken_tokens, self.taken_texts = len(self.token_ids), len(self.texts)
        self.has_new_output = False
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=self.token_ids[first_token:],
            cumulative_logprob=self.cumulative_logprob,
            logprobs=None if self.logprobs is None else self.logprobs[first_token:],
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


class OutputBuffer:
    """The prompt and the emitted output of one request."""

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        output_kind: RequestOutputKind,
        prompt: str | None = None,
    ) -> None:
        """Start without output.

        Args:
            request_id: The client's request id, set on the outputs.
            prompt_token_ids: The prompt, [tokens].
            params: Sampling parameters, validated by vLLM.
            output_kind: Kind of outputs that ``take`` returns.
            prompt: Text of the prompt, set on the outputs; None: unknown.
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
        self._choices = [_Choice(index, params) for index in range(params.n)]
        self._prompt_logprobs: PromptLogprobs | None = None
        if params.prompt_logprobs is not None:
            self._prompt_logprobs = FlatLogprobs() if params.flat_logprobs else []
        self._finish_taken = False

    @property
    def emitted_tokens(self) -> int:
        """Number of emitted tokens, over all choices."""
        return sum(len(choice.token_ids) for choice in self._choices)

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
                _check_logprobs(choice)
        if not self.started:
            self.started = True
            self.cached_tokens = delta.cached_tokens
            if self._prompt_logprobs is not None:
                self._prompt_logprobs.extend(
                    _candidates(position, detokenize=self._params.detokenize) or None
                    for position in delta.prompt_logprobs
                )
        tokens = 0
        for choice in choices:
            tokens += known[choice.index].apply(choice)
        if delta.finished:
            self.finished = True
            for unfinished in known:
                if unfinished.finish_reason is None:
                    unfinished.finish_reason = "abort"
                    unfinished.has_new_output = True
        return tokens

    def take(self) -> RequestOutput | None:
        """Return the output not taken yet, in the requested kind; None if there is none."""
        if not self.takeable:
            return None
        delta = self._kind is RequestOutputKind.DELTA
        whole = not self.incremental
        outputs = [
            choice.take(delta=delta) for choice in self._choices if choice.has_new_output or whole
        ]
        self._finish_taken = self.finished
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
            finished=self.finished,
            num_cached_tokens=self.cached_tokens,
        )


def _check_logprobs(choice: link_pb2.ChoiceDelta) -> None:
    """Check that each token has log-probabilities, and each position has candidates.

    Raises:
        ValueError: Log-probabilities or candidates are missing.
    """
    if len(choice.logprobs) != len(choice.token_ids):
        raise ValueError(
            f"{len(choice.logprobs)} log-probabilities for {len(choice.token_ids)} tokens",
        )
    for position in choice.logprobs:
        if not 0 < len(position.token_ids) == len(position.logprobs):
            raise ValueError(
                f"{len(position.logprobs)} log-probabilities for {len(position.token_ids)} "
                "candidates of a position",
            )


def _candidates(position: link_pb2.PositionLogprobs, *, detokenize: bool) -> dict[int, Logprob]:
    ranks, texts = position.vocab_ranks, position.decoded_tokens
    return {
        token: Logprob(
            logprob,
            (ranks[i] if i < len(ranks) else 0) or None,
            # Without detokenization vLLM has None here, which the link cannot represent.
            texts[i] if detokenize and i < len(texts) else None,
        )
        for i, (token, logprob) in enumerate(
            zip(position.token_ids, position.logprobs, strict=True),
        )
    }

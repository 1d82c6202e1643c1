"""Converts link deltas to vLLM's ``RequestOutput``, as vLLM's own output processor emits it.

Deltas carry token ids. Text, stop strings and the texts of log-probabilities are made here.

An ``OutputBuffer`` keeps everything that a request has emitted, and how much of it the consumer
has taken. Deltas that arrive while the consumer is busy are merged, and a resumption reads the
prompt and the emitted token ids from here.
"""

from collections import deque
from collections.abc import Callable, Sequence

from vllm.logprobs import FlatLogprobs, Logprob, PromptLogprobs, SampleLogprobs
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tokenizers import TokenizerLike

from serving.link.v1 import link_pb2
from serving.vllm_adapter.detokenizer import CandidateTexts, TextStream, candidate_texts

_FINISH_REASONS: dict[int, str] = {
    link_pb2.ChoiceDelta.STOP: "stop",
    link_pb2.ChoiceDelta.LENGTH: "length",
    link_pb2.ChoiceDelta.ABORT: "abort",
    link_pb2.ChoiceDelta.ERROR: "error",
    link_pb2.ChoiceDelta.REPETITION: "repetition",
}
"""Texts of ``vllm.v1.engine.FinishReason`` by link value."""


_MERGED = 64
"""Maximum number of tokens of a choice in one output, unless one delta has more. A client that has
not read for a while may have thousands waiting; each takes up to 0.1 ms to parse and encode."""
_CONVERTED = 64
"""Positions of a prompt whose log-probabilities are converted at a time."""


class DivergedError(ValueError):
    """A replay generated output that differs from what was already emitted."""


class _Choice:
    """One of the request's ``n`` choices."""

    __slots__ = (
        "accepted_tokens",
        "candidates",
        "completed",
        "cumulative_logprob",
        "drafted_tokens",
        "finish_reason",
        "has_new_output",
        "index",
        "interval",
        "logprobs",
        "make_text",
        "marks",
        "plain",
        "replayed_tokens",
        "stop_reason",
        "stopped",
        "taken_texts",
        "taken_tokens",
        "text",
        "texts",
        "token_ids",
    )

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        make_text: Callable[[], TextStream] | None,
        *,
        delta: bool,
        interval: int,
    ) -> None:
        self.index = index
        self.make_text = make_text
        """Makes ``text`` when the first tokens arrive; None: without text."""
        self.text: TextStream | None = None
        self.candidates: CandidateTexts | None = None
        self.interval = interval
        self.marks: deque[tuple[int, int]] | None = deque() if delta else None
        """Numbers of tokens and texts between deltas that have not been taken. Empty if a client
        takes each delta before the next one arrives."""
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
        # Progress of a replay that has not reached the end of the emitted output; None: no replay.
        self.replayed_tokens: int | None = None
        self.stopped = False
        """Whether a stop string ended the choice, of which the rank does not know."""
        self.completed = False
        """Whether the rank must be told that the choice has ended."""
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.plain = False
        """Whether the next delta can be appended without further checks."""

    def rewind(self) -> None:
        self.plain = False
        self.replayed_tokens = 0

    def apply(self, delta: link_pb2.ChoiceDelta) -> int:
        """Apply a delta of any kind; return the number of new tokens."""
        before = len(self.token_ids)
        if delta.HasField("speculation"):
            # Counts of the current rank; those of a rank that was lost are not added.
            self.drafted_tokens = delta.speculation.proposed_tokens
            self.accepted_tokens = delta.speculation.accepted_tokens
        self._apply(delta)
        self.plain = (
            self.logprobs is None
            and self.finish_reason is None
            and self.replayed_tokens is None
            and self.interval == 1
            and (self.text is None or self.text.decode_one is not None)
        )
        return len(self.token_ids) - before

    def add(self, delta: link_pb2.ChoiceDelta) -> int:
        """Append a delta without a finish reason to a ``plain`` choice; return its token count."""
        token_ids = delta.token_ids
        if self.has_new_output:
            self._mark()
        self.token_ids.extend(token_ids)
        if self.text is not None:
            decode = self.text.decode_one
            assert decode is not None
            for token in token_ids:
                if text := decode(token):
                    self.texts.append(text)
        self.has_new_output = True
        return len(token_ids)

    def _apply(self, delta: link_pb2.ChoiceDelta) -> None:
        known = self._known_tokens(delta)
        reason = delta.finish_reason
        if self.replayed_tokens is not None and reason and not self.finish_reason:
            raise DivergedError(
                f"it ended after {self.replayed_tokens} of {len(self.token_ids)} sent tokens",
            )
        if self.finish_reason is not None:
            return  # already finished before the group was lost; the replay matches
        token_ids = delta.token_ids[known:]
        if known and not token_ids and not reason:
            return  # the replay repeated emitted output
        text, stop = self._decode(token_ids, delta)
        self._mark()
        self.token_ids.extend(token_ids)
        if text:
            self.texts.append(text)
        if self.logprobs is not None:
            self._add_logprobs(self.logprobs, delta.logprobs[known : known + len(token_ids)])
        if stop is not None:
            self.finish_reason, self.stop_reason = "stop", stop
            self.stopped, self.completed = True, not reason
        elif reason:
            self.finish_reason = _FINISH_REASONS.get(reason, "error")
            match delta.WhichOneof("stop_reason"):
                case "stop_string":
                    self.stop_reason = delta.stop_string
                case "stop_token_id":
                    self.stop_reason = delta.stop_token_id
        self.has_new_output |= self._due()

    def _decode(self, token_ids: list[int], delta: link_pb2.ChoiceDelta) -> tuple[str, str | None]:
        """Return the text of a delta's new tokens, and the stop string that ends it.

        Tokens after the stop string are removed from ``token_ids``.
        """
        if self.text is None:
            if self.make_text is None:
                return "", None
            self.text = self.make_text()
        reason = delta.finish_reason
        # Ranks of version 1 of the protocol apply stop strings too, and say so.
        by_token = reason == link_pb2.ChoiceDelta.STOP and not delta.HasField("stop_string")
        kept, text, stop = self.text.add(token_ids, stop_token=by_token, finished=bool(reason))
        del token_ids[kept:]
        return text, stop

    def _due(self) -> bool:
        """Return whether the output since the last one taken is to be taken (stream_interval)."""
        new = len(self.token_ids) - self.taken_tokens
        return self.taken_tokens == 0 or new >= self.interval or self.finish_reason is not None

    def _add_logprobs(
        self, logprobs: SampleLogprobs, positions: Sequence[link_pb2.PositionLogprobs]
    ) -> None:
        for position in positions:
            logprobs.append(_candidates(position, self.candidates, logprobs))
            # The chosen token comes first.
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + position.logprobs[0]

    def _mark(self) -> None:
        """Note the end of the last delta if it has not been taken; call before adding one."""
        if self.has_new_output and self.marks is not None:
            self.marks.append((len(self.token_ids), len(self.texts)))

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
            # A rank does not know where a stop string ended the choice.
            self.finish_reason and not self.stopped and len(expected) < len(delta.token_ids)
        ):
            raise DivergedError(f"tokens differ from position {begin}")
        self.replayed_tokens += len(expected)
        if self.replayed_tokens == len(self.token_ids):
            if not self.finish_reason:
                self.replayed_tokens = None
            elif self.stopped and expected:
                self.completed = True
        return len(expected)

    def take(self) -> CompletionOutput:
        marks, texts = self.marks, self.texts
        first_token, first_text = (0, 0) if marks is None else (self.taken_tokens, self.taken_texts)
        last_token, last_text = len(self.token_ids), len(texts)
        self.has_new_output = False
        if marks:
            if last_token - first_token > _MERGED:
                last_token, last_text = self._cut(marks)
                self.has_new_output = True
            else:
                marks.clear()
        if last_text == first_text + 1:
            text = texts[first_text]
        else:
            text = "".join(texts[first_text:last_text])
        if marks is None:
            self.texts, last_text = [text], 1
        self.taken_tokens, self.taken_texts = last_token, last_text
        left = self.has_new_output
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=self.token_ids[first_token:last_token],
            cumulative_logprob=self.cumulative_logprob,
            logprobs=None if self.logprobs is None else self.logprobs[first_token:last_token],
            finish_reason=None if left else self.finish_reason,
            stop_reason=None if left else self.stop_reason,
        )

    def _cut(self, marks: deque[tuple[int, int]]) -> tuple[int, int]:
        """Return the numbers of tokens and texts to take: whole deltas, at most ``_MERGED``."""
        end = marks.popleft()
        while marks and marks[0][0] - self.taken_tokens <= _MERGED:
            end = marks.popleft()
        return end


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
            prompt: Text of the prompt, set on the outputs; None: unknown.
            tokenizer: The model's tokenizer; None: outputs have no text.
            stream_interval: Minimum number of tokens of a choice in an output, except for the
                first and the last one; the request may ask for more.
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
            _Choice(
                index,
                params,
                None if self._tokenizer is None else self._make_text,
                delta=delta,
                interval=max(stream_interval, params.stream_interval or 1) if delta else 1,
            )
            for index in range(params.n)
        ]
        self.completed: list[int] = []
        """Choices of which the rank must be told that they have ended; the link removes them."""
        self._prompt_logprobs: PromptLogprobs | None = None
        if params.prompt_logprobs is not None:
            self._prompt_logprobs = FlatLogprobs() if params.flat_logprobs else []
        self.unconverted: deque[link_pb2.PositionLogprobs] = deque()
        """Log-probabilities of the prompt, received and not converted: call ``convert_some``."""
        self._finish_taken = False
        self.backlog = False
        """Whether ``take`` has left output behind."""

    def _make_text(self) -> TextStream:
        assert self._tokenizer is not None
        return TextStream(self._tokenizer, self.prompt_token_ids, self._params)

    def _candidates(self) -> CandidateTexts | None:
        return None if self._tokenizer is None else candidate_texts(self._tokenizer)

    def convert_some(self) -> None:
        """Convert the log-probabilities of some positions of the prompt; takes about 1 ms."""
        assert self._prompt_logprobs is not None
        positions, logprobs = self.unconverted, self._prompt_logprobs
        candidates = self._candidates()
        for _ in range(min(_CONVERTED, len(positions))):
            found = _candidates(positions.popleft(), candidates, logprobs)
            logprobs.append(found or None)

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
                _check_logprobs(choice)
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
        """Take from the first delta what only it has."""
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
            for unfinished in known:
                if unfinished.finish_reason is None:
                    unfinished.finish_reason = "abort"
                    unfinished.has_new_output = True
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


def _candidates(
    position: link_pb2.PositionLogprobs,
    candidates: CandidateTexts | None,
    before: SampleLogprobs | PromptLogprobs,
) -> dict[int, Logprob]:
    """Return vLLM's form of a position's log-probabilities.

    Args:
        position: The position as received.
        candidates: Texts of tokens; None: without texts.
        before: Log-probabilities of the positions before it.
    """
    ranks, tokens = position.vocab_ranks, position.token_ids
    texts = [None] * len(tokens) if candidates is None else candidates.texts(tokens, before)
    return {
        token: Logprob(logprob, (ranks[i] if i < len(ranks) else 0) or None, texts[i])
        for i, (token, logprob) in enumerate(zip(tokens, position.logprobs, strict=True))
    }

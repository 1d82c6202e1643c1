"""The emitted output of one choice: detokenizes deltas and merges them until they are taken.

After a rank is lost, the deltas of a replay are compared with the emitted output and skipped.
"""

from collections import deque
from collections.abc import Callable, Sequence

from vllm.logprobs import FlatLogprobs, SampleLogprobs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import SamplingParams

from serving.link.v1 import link_pb2
from serving.requests.logprobs import candidates_at
from serving.vllm_adapter.detokenizer import CandidateTexts, TextStream

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


class DivergedError(ValueError):
    """A replay generated output that differs from what was already emitted."""


class ChoiceBuffer:
    """The emitted output of one choice, and how much of it has been taken."""

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
        """Start without output.

        Args:
            index: Number of the choice, from 0.
            params: Sampling parameters of the request.
            make_text: Creates the choice's detokenizer when the first tokens arrive. If None, the
                output has no text.
            delta: Whether ``take`` returns only the output since the last ``take``.
            interval: Minimum number of tokens in an output, except for the first and the last one.
        """
        self.index = index
        self.make_text = make_text
        """Creates ``text`` when the first tokens arrive. If None, the output has no text."""
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
        # Progress of a replay until it reaches the end of the emitted output; None if there is no
        # replay.
        self.replayed_tokens: int | None = None
        self.stopped = False
        """Whether a stop string ended the choice; the rank does not know of it."""
        self.completed = False
        """Whether the rank must be told that the choice has ended."""
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.plain = False
        """Whether the next delta can be appended without further checks."""

    def rewind(self) -> None:
        """Expect a replay from the start."""
        self.plain = False
        self.replayed_tokens = 0

    def apply(self, delta: link_pb2.ChoiceDelta) -> int:
        """Apply a delta of any kind; return the number of new tokens.

        Raises:
            DivergedError: The delta differs from the output that a replay must repeat.
        """
        before = len(self.token_ids)
        if delta.HasField("speculation"):
            # These are the counts of the current rank; the counts of a lost rank are not added.
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
        # Ranks with protocol version 1 also apply stop strings, and report it.
        by_token = reason == link_pb2.ChoiceDelta.STOP and not delta.HasField("stop_string")
        kept, text, stop = self.text.add(token_ids, stop_token=by_token, finished=bool(reason))
        del token_ids[kept:]
        return text, stop

    def _due(self) -> bool:
        """Return whether the output since the last ``take`` is due (stream_interval)."""
        new = len(self.token_ids) - self.taken_tokens
        return self.taken_tokens == 0 or new >= self.interval or self.finish_reason is not None

    def _add_logprobs(
        self, logprobs: SampleLogprobs, positions: Sequence[link_pb2.PositionLogprobs]
    ) -> None:
        for position in positions:
            logprobs.append(candidates_at(position, self.candidates, logprobs))
            # The chosen token comes first.
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + position.logprobs[0]

    def _mark(self) -> None:
        """Record the end of the last delta if it has not been taken; call before adding a delta."""
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

    def end(self) -> None:
        """End the choice as aborted if it has not ended."""
        if self.finish_reason is None:
            self.finish_reason = "abort"
            self.has_new_output = True

    def take(self) -> CompletionOutput:
        """Return the output not taken yet; at most ``_MERGED`` tokens of several deltas."""
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

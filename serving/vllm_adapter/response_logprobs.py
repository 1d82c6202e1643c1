"""Log probabilities of the text of a streamed response.

vLLM 0.32 attaches to a text delta only the log probabilities of the same delta's tokens. Those of
tokens that add no text are lost: parts of a character, text held back for a stop string, the token
that ends the answer. Here they are kept until the next event that carries log probabilities, so
that a stream contains the same log probabilities as a complete response.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from vllm.entrypoints.openai.responses.streaming_events import _to_stream_logprobs


def text_range(parser: Any, request: Any, token_ids: Sequence[int]) -> slice:
    """Return which tokens of a complete answer belong to its text.

    The protocol has no log probabilities for reasoning and tool calls.

    Args:
        parser: vLLM's parser of the answer, or None.
        request: The request of /v1/responses.
        token_ids: All tokens of the answer.
    """
    end, calls = _marks(parser, request)
    ids = list(token_ids)
    begin = ids.index(end) + 1 if end in ids else 0
    return slice(begin, ids.index(calls, begin) if calls in ids[begin:] else len(ids))


def _marks(parser: Any, request: Any) -> tuple[int | None, int | None]:
    """Return the ids of the tokens that end the reasoning and that begin the tool calls."""
    end = getattr(getattr(parser, "_reasoning_parser", None), "end_token_id", None)
    if not request.tools or request.tool_choice == "none":
        return end, None
    tools = getattr(parser, "_tool_parser", None)
    return end, getattr(tools, "tool_calls_start_token_id", None)


class StreamedLogprobs:
    """The log probabilities of one stream."""

    def __init__(self, request: Any, create: Callable[[Sequence[int], Any], list[Any]]) -> None:
        """Start without tokens.

        Args:
            request: The request of /v1/responses.
            create: Converts tokens and their log probabilities to the protocol's objects.
        """
        self._request = request
        self._create = create
        self._marks: tuple[int | None, int | None] | None = None
        self._pending: list[Any] = []
        """Log probabilities not sent yet."""
        self._sent: list[Any] = []
        """Log probabilities of the current message that have been sent."""
        self._in_text = False
        """Whether the reasoning has ended."""
        self._in_calls = False

    async def noting(self, contexts: AsyncIterator[Any]) -> AsyncGenerator[Any]:
        """Yield vLLM's contexts, and keep the log probabilities of their outputs."""
        async for context in contexts:
            if context.last_output is not None and context.last_output.outputs:
                if self._marks is None:
                    self._marks = _marks(context.response_parser, self._request)
                self._note(context.last_output.outputs[0], *self._marks)
            yield context

    def _note(self, output: Any, end: int | None, calls: int | None) -> None:
        if self._in_calls or not output.logprobs:
            return
        ids, logprobs = list(output.token_ids), output.logprobs
        first, last = 0, len(ids)
        if not self._in_text and end in ids:
            self._in_text = True
            self._pending.clear()
            first = ids.index(end) + 1
        if calls in ids[first:]:
            self._in_calls = True
            last = ids.index(calls, first)
        self._pending += self._create(ids[first:last], logprobs[first:last])

    def add_to(self, event: Any) -> None:
        """Set the log probabilities of an event, if its type has any."""
        kind = event.type
        if kind == "response.output_item.added":
            self._sent = []
        elif kind == "response.output_text.delta":
            event.logprobs = _to_stream_logprobs(self._take())
        elif kind == "response.output_text.done":
            self._take()
            event.logprobs = _to_stream_logprobs(self._sent)
        elif kind == "response.content_part.done" and event.part.type == "output_text":
            event.part.logprobs = self._sent
        elif kind == "response.output_item.done" and event.item.type == "message":
            for part in event.item.content:
                part.logprobs = self._sent

    def _take(self) -> list[Any]:
        taken, self._pending = self._pending, []
        self._sent += taken
        return taken

"""Parser of model output that gives the same result for streamed and complete answers.

vLLM builds a parser class from a reasoning parser and a tool parser. ``install_answer_parser``
replaces it with a subclass that

- passes one token at a time, with its text, to the streaming parsers (``token_text``);
- parses DeepSeek-V3's tool calls from the text alone (``deepseek_tool_calls``), and completes the
  calls of other streaming parsers at the end (``tool_calls``);
- restricts the arguments of forced tool calls to JSON objects (``tool_calls``);
- counts reasoning that begins in the prompt, and adds ``reasoning_content``.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, cast

from starlette.datastructures import State
from vllm.entrypoints.generate.base.protocol import DeltaMessage, DeltaToolCall
from vllm.parser.abstract_parser import DelegatingParser
from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser
from vllm.tool_parsers.deepseekv3_tool_parser import DeepSeekV3ToolParser

from serving.vllm_adapter.deepseek_tool_calls import DeepSeekToolCalls
from serving.vllm_adapter.token_text import TokenText, text_may_differ, token_text
from serving.vllm_adapter.tool_calls import CompletedToolCalls, tightened

_HOLDERS = {
    "online_renderer": "parser",
    "openai_serving_chat": "parser_cls",
    "openai_serving_chat_batch": "parser_cls",
    "openai_serving_responses": "parser",
    "anthropic_serving_messages": "parser_cls",
}
"""Objects in vLLM's app state that create parsers, and the attribute that holds the class."""


def install_answer_parser(state: State, *, compact_json: bool) -> None:
    """Replace the parser classes in vLLM's app state with subclasses of ``AnswerParser``.

    Args:
        state: vLLM's app state after ``init_app_state``.
        compact_json: Whether to forbid optional white space in the JSON of forced tool calls.
    """
    for name, attribute in _HOLDERS.items():
        holder = getattr(state, name)
        base = getattr(holder, attribute)
        # Other classes parse streamed and complete answers with the same code.
        if base is not None and issubclass(base, DelegatingParser):
            tools = base.tool_parser_cls, base.reasoning_parser_cls, base.tool_strict_level
            setattr(holder, attribute, _served(*tools, compact_json))


@cache
def _served(tools: Any, reasoning: Any, strict_level: Any, compact: bool) -> type[Any]:  # noqa: FBT001  cached by position
    class Served(AnswerParser):
        tool_parser_cls = DeepSeekToolCalls if tools is DeepSeekV3ToolParser else tools
        reasoning_parser_cls = reasoning
        tool_strict_level = strict_level
        compact_json = compact

    return Served


_DEEPSEEK_STREAMING = DeepSeekR1ReasoningParser.extract_reasoning_streaming


class AnswerParser(DelegatingParser):
    """Parses one choice; subclasses set the reasoning parser and the tool parser."""

    compact_json = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fresh = partial(type(self), *args, **kwargs)
        self._parse: Callable[..., DeltaMessage | None] | None = None
        self._passed: list[int] | None = []
        """Tokens parsed so far. None once token boundaries no longer matter."""
        self._tokens: TokenText | None = None
        self._each_token = False
        """Whether to parse tokens one by one until the end of the answer."""
        self._prompt_ids: Sequence[int] = ()
        self._answer_ids: Sequence[int] = ()
        """Tokens of the prompt and of the complete answer, as far as known."""

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | None:
        """Parse a delta of any number of tokens; see vLLM's ``Parser.parse_delta``."""
        parse = self._parse
        if parse is None:
            parse = self._parse = self._choose(request)
        delta = parse(
            delta_text=delta_text,
            delta_token_ids=delta_token_ids,
            request=request,
            prompt_token_ids=prompt_token_ids,
            finished=finished,
        )
        if delta is None or delta.reasoning is None:
            return delta
        if not (delta.reasoning or delta.content or delta.tool_calls):
            return None  # e.g. a part of a character; a stream would show empty reasoning
        delta.reasoning_content = delta.reasoning
        return delta

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Return reasoning and content of a complete answer, split as in a stream.

        A stream is split at the end-of-reasoning token, which the prompt may already contain. vLLM
        splits complete answers at the text of that token, which other tokens may spell, and drops
        all text before a start-of-reasoning marker, even one late in the answer.
        """
        parser = self._reasoning_parser
        if not isinstance(parser, DeepSeekR1ReasoningParser):
            found: tuple[str | None, str | None] = super().extract_reasoning(model_output, request)
            return found
        if self._prompt_ids and parser.is_reasoning_end(self._prompt_ids):
            return None, model_output or None
        at = self._end_of_reasoning(model_output, parser, request)
        if at < 0:
            reasoning, content = model_output, ""
        else:
            reasoning, content = model_output[:at], model_output[at + len(parser.end_token) :]
        return reasoning.replace(parser.start_token, ""), content or None

    def _end_of_reasoning(self, text: str, parser: DeepSeekR1ReasoningParser, request: Any) -> int:
        """Return the position of the end-of-reasoning token in a complete answer, or -1."""
        at = text.find(parser.end_token)
        token_ids, end = self._answer_ids, parser.end_token_id
        if at < 0 or not token_ids:
            return at
        if end not in token_ids:
            return -1
        spelled = text.count(parser.end_token) != list(token_ids).count(cast("int", end))
        if spelled or text_may_differ(request):
            before = token_ids[: token_ids.index(cast("int", end))]
            at = token_text(self.model_tokenizer, self._prompt_ids, request).length(before)
            return at if text.startswith(parser.end_token, at) else -1
        return at

    def set_prompt_token_ids(self, prompt_token_ids: Sequence[int]) -> None:
        """Note the prompt of the answer that ``parse`` gets."""
        self._prompt_ids = prompt_token_ids
        super().set_prompt_token_ids(prompt_token_ids)

    def parse(
        self,
        model_output: str,
        request: Any,
        enable_auto_tools: bool = False,  # noqa: FBT001, FBT002  as in vLLM
        model_output_token_ids: Sequence[int] = (),
    ) -> Any:
        """Parse a complete answer; see vLLM's ``Parser.parse``."""
        self._answer_ids = model_output_token_ids
        return super().parse(model_output, request, enable_auto_tools, model_output_token_ids)

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """Count the reasoning tokens of an answer."""
        counted: int = super().count_reasoning_tokens(
            _with_start(self._reasoning_parser, token_ids)
        )
        return counted

    def _apply_structural_tag(self, request: Any) -> Any:
        before = request.structured_outputs
        request = super()._apply_structural_tag(request)
        made = request.structured_outputs
        if made is not None and made is not before:
            request.structured_outputs = tightened(made, compact=self.compact_json)
        return request

    def _choose(self, request: Any) -> Callable[..., DeltaMessage | None]:
        """Return the function that parses the deltas of this request."""
        has_tools = bool(request.tools) and request.tool_choice != "none"
        other_tools = has_tools and not isinstance(self._tool_parser, DeepSeekToolCalls)
        self._each_token = other_tools or text_may_differ(request)
        if other_tools and self._tool_parser is not None:
            # /v1/responses without tool parsing has no tool parser.
            return CompletedToolCalls(self._parse_tokens, self._fresh, enable_auto_tools=True)
        return self._parse_tokens

    def _parse_tokens(self, *, finished: bool, **delta: Any) -> DeltaMessage | None:
        if self._passed is None:
            return self._parse_one(finished=finished, **delta)
        token_ids: list[int] = delta["delta_token_ids"]
        if self._tokens is None and not self._must_split(token_ids):
            self._passed += token_ids
            message = self._parse_one(finished=finished, **delta)
        else:
            message = self._parse_pieces(finished=finished, **delta)
        if self._stream_state.reasoning_ended and not self._each_token:
            self._passed = self._tokens = None
        return message

    def _must_split(self, token_ids: Sequence[int]) -> bool:
        if self._each_token:
            return True
        parser = self._reasoning_parser
        if len(token_ids) < 2 or parser is None:  # noqa: PLR2004  one needs no splitting
            return False
        start, end = getattr(parser, "start_token_id", None), getattr(parser, "end_token_id", None)
        return end is None or end in token_ids or start in token_ids

    def _parse_pieces(
        self, *, delta_text: str, delta_token_ids: list[int], finished: bool, **rest: Any
    ) -> DeltaMessage | None:
        if self._tokens is None:
            prompt_ids = rest.get("prompt_token_ids") or ()
            self._tokens = token_text(self.model_tokenizer, prompt_ids, rest["request"])
            self._tokens.skip(self._passed or ())
        pieces = list(self._tokens.pieces(delta_text, delta_token_ids, finished=finished))
        if finished and not pieces:
            pieces = [("", [])]
        last = len(pieces) - 1
        return _merged(
            self._parse_one(
                delta_text=text,
                delta_token_ids=token_ids,
                finished=finished and number == last,
                **rest,
            )
            for number, (text, token_ids) in enumerate(pieces)
        )

    def _only_reasoning(self, token_ids: Sequence[int]) -> bool:
        """Return whether tokens in the middle of DeepSeek's reasoning continue it.

        vLLM's parser searches all previous tokens for the markers, which takes 0.5 ms per token
        after 30,000.
        """
        state, parser = self._stream_state, self._reasoning_parser
        return (
            state.prompt_reasoning_checked
            and not state.reasoning_ended
            and getattr(type(parser), "extract_reasoning_streaming", None) is _DEEPSEEK_STREAMING
            and parser.start_token_id not in token_ids
            and parser.end_token_id not in token_ids
        )

    def _parse_one(self, *, finished: bool, **delta: Any) -> DeltaMessage | None:
        if not finished and self._only_reasoning(delta["delta_token_ids"]):
            shown = delta["request"].include_reasoning
            return DeltaMessage(reasoning=delta["delta_text"]) if shown else None
        message = super().parse_delta(finished=finished, **delta)
        if finished and isinstance(self._tool_parser, DeepSeekToolCalls):
            return _merged((message, self._tool_parser.finish()))
        return message


def _merged(messages: Iterable[DeltaMessage | None]) -> DeltaMessage | None:
    """Merge deltas into one, or return None if there are none."""
    given = [message for message in messages if message is not None]
    if len(given) < 2:  # noqa: PLR2004  nothing to merge
        return given[0] if given else None
    # A delta's JSON contains only the fields passed to its constructor.
    fields: dict[str, Any] = {}
    for name in ("reasoning", "content"):
        if text := "".join(getattr(message, name) or "" for message in given):
            fields[name] = text
    if calls := [call for message in given for call in message.tool_calls or ()]:
        fields["tool_calls"] = _joined(calls)
    return DeltaMessage(**fields) if fields else None


def _joined(calls: Sequence[DeltaToolCall]) -> list[DeltaToolCall]:
    """Join consecutive parts of the same call."""
    joined: list[DeltaToolCall] = []
    for call in calls:
        before = joined[-1] if joined else None
        if before is None or before.index != call.index or call.id is not None:
            joined.append(call)
        elif before.function is not None and call.function is not None:
            more = call.function.arguments or ""
            before.function.arguments = (before.function.arguments or "") + more
    return joined


def _with_start(reasoning_parser: Any, token_ids: Sequence[int]) -> Sequence[int]:
    """Prepend the start-of-reasoning token, which DeepSeek's template puts into the prompt.

    vLLM counts the tokens between the start and end tokens in the output; without the start token
    the count would be 0.
    """
    start = getattr(reasoning_parser, "start_token_id", None)
    end = getattr(reasoning_parser, "end_token_id", None)
    if start is None or start in token_ids:
        return token_ids
    unmarked_is_reasoning = isinstance(reasoning_parser, DeepSeekR1ReasoningParser)
    return (
        (cast("int", start), *token_ids) if unmarked_is_reasoning or end in token_ids else token_ids
    )

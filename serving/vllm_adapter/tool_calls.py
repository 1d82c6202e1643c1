"""Makes streamed tool calls complete, however the tokens were cut into deltas.

vLLM's streaming tool parsers expect about one token at a time. When deltas merge (a slow
client, several tokens accepted in one step) some of them drop the rest of a call, or a whole
call, without a word. vLLM's parser for whole answers is sure: at the end of a choice its
calls are compared with what was streamed, and what is missing goes out with the last delta.
"""

from collections.abc import Callable, Iterable
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
)
from vllm.renderers.chat_utils import make_tool_call_id


class CompletedToolCalls:
    """Stands in for ``parse_delta`` of one choice's parser."""

    def __init__(
        self,
        parse_delta: Callable[..., DeltaMessage | None],
        fresh_parser: Callable[[], Any],
        *,
        enable_auto_tools: bool,
    ) -> None:
        self._parse_delta = parse_delta
        self._fresh_parser = fresh_parser
        self._enable_auto_tools = enable_auto_tools
        self._text = ""
        self._token_ids: list[int] = []
        self._arguments: dict[int, str] = {}
        """What was streamed of each call's arguments."""

    def __call__(self, **delta: Any) -> DeltaMessage | None:
        """Parse a delta, whose arguments are those of vLLM's ``Parser.parse_delta``."""
        message = self._parse_delta(**delta)
        request = delta["request"]
        if not request.tools or request.tool_choice == "none":
            return message
        self._text += delta["delta_text"]
        self._token_ids.extend(delta["delta_token_ids"])
        self._note(message.tool_calls if message is not None else ())
        if not delta["finished"]:
            return message
        missing = list(self._missing(request, delta.get("prompt_token_ids")))
        if missing:
            message = message or DeltaMessage()
            message.tool_calls = [*message.tool_calls, *missing]
        return message

    def _note(self, calls: Iterable[DeltaToolCall]) -> None:
        for call in calls:
            arguments = (call.function and call.function.arguments) or ""
            self._arguments[call.index] = self._arguments.get(call.index, "") + arguments

    def _missing(self, request: Any, prompt_ids: list[int] | None) -> Iterable[DeltaToolCall]:
        parser = self._fresh_parser()
        if prompt_ids is not None:
            parser.set_prompt_token_ids(prompt_ids)
        _, _, calls = parser.parse(
            self._text,
            request,
            enable_auto_tools=self._enable_auto_tools,
            model_output_token_ids=self._token_ids,
        )
        for index, call in enumerate(calls or ()):
            streamed = self._arguments.get(index)
            if streamed is None:
                yield DeltaToolCall(
                    index=index,
                    id=call.id or make_tool_call_id(),
                    type="function",
                    function=DeltaFunctionCall(name=call.name, arguments=call.arguments),
                )
            elif call.arguments.startswith(streamed) and call.arguments != streamed:
                # Otherwise the two parsers write the same JSON differently.
                rest = call.arguments[len(streamed) :]
                yield DeltaToolCall(index=index, function=DeltaFunctionCall(arguments=rest))

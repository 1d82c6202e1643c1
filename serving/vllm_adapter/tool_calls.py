"""Completes streamed tool calls, and tightens the grammar of forced ones.

vLLM's streaming tool parsers expect about one token at a time. With merged deltas (a slow client,
several tokens accepted in one step), some parsers silently drop the rest of a call or a whole call.
They also hold text back that may begin a call, and drop it if the answer ends there. At the end of
a choice, the streamed calls and text are therefore compared with those that vLLM's parser for
complete answers finds, and missing parts are sent with the last delta.

vLLM 0.32 passes a tool's schema to xgrammar in a structural tag. There, the white-space rule of
``response_format`` (``structured_outputs_config.disable_any_whitespace``) does not apply, and the
arguments of a tool without ``strict`` may be any JSON value. ``tightened`` applies the rule and
requires an object.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import xgrammar
from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
)
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.sampling_params import StructuredOutputsParams

_OBJECT = {"type": "object"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|.)", re.DOTALL)
"""An escape in a printed grammar, with the digits of ``\\xHH``."""


class CompletedToolCalls:
    """Wraps ``parse_delta`` of the parser of one choice."""

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
        self._content = ""
        """Content streamed so far."""
        self._arguments: dict[int, str] = {}
        """Arguments streamed so far, by call index."""

    def __call__(self, **delta: Any) -> DeltaMessage | None:
        """Parse a delta; the arguments are those of vLLM's ``Parser.parse_delta``."""
        message = self._parse_delta(**delta)
        request = delta["request"]
        if not request.tools or request.tool_choice == "none":
            return message
        self._text += delta["delta_text"]
        self._token_ids.extend(delta["delta_token_ids"])
        if message is not None:
            self._content += message.content or ""
            self._note(message.tool_calls)
        if not delta["finished"]:
            return message
        content, calls = self._complete(request, delta.get("prompt_token_ids"))
        missing = list(self._missing(calls))
        if missing:
            message = message or DeltaMessage()
            message.tool_calls = [*message.tool_calls, *missing]
        # Once a call has been streamed, the content of a complete answer may include its text.
        if content and not self._arguments and content.startswith(self._content):
            message = message or DeltaMessage()
            message.content = (message.content or "") + content[len(self._content) :]
        return message

    def _note(self, calls: Iterable[DeltaToolCall]) -> None:
        for call in calls:
            arguments = (call.function and call.function.arguments) or ""
            self._arguments[call.index] = self._arguments.get(call.index, "") + arguments

    def _complete(self, request: Any, prompt_ids: list[int] | None) -> tuple[str | None, Any]:
        """Return the content and calls that vLLM finds in the complete answer."""
        parser = self._fresh_parser()
        if prompt_ids is not None:
            parser.set_prompt_token_ids(prompt_ids)
        _, content, calls = parser.parse(
            self._text,
            request,
            enable_auto_tools=self._enable_auto_tools,
            model_output_token_ids=self._token_ids,
        )
        return content, calls or ()

    def _missing(self, calls: Any) -> Iterable[DeltaToolCall]:
        for index, call in enumerate(calls):
            streamed = self._arguments.get(index)
            if streamed is None:
                yield DeltaToolCall(
                    index=index,
                    id=call.id or make_tool_call_id(),
                    type="function",
                    function=DeltaFunctionCall(name=call.name, arguments=call.arguments),
                )
            elif call.arguments.startswith(streamed) and call.arguments != streamed:
                # If not a prefix, the two parsers format the same JSON differently.
                rest = call.arguments[len(streamed) :]
                yield DeltaToolCall(index=index, function=DeltaFunctionCall(arguments=rest))


def tightened(params: StructuredOutputsParams, *, compact: bool) -> StructuredOutputsParams:
    """Restrict the arguments in a tool-call grammar to JSON objects.

    Args:
        params: Result of vLLM's ``Parser.adjust_request`` for the request's tools.
        compact: Whether to forbid optional white space in the JSON.
    """
    if params.structural_tag is None:
        return params
    tag = json.loads(params.structural_tag)
    return StructuredOutputsParams(
        structural_tag=json.dumps(_rewritten(tag, compact=compact)),
        disable_any_whitespace=params.disable_any_whitespace,
    )


def _rewritten(node: Any, *, compact: bool) -> Any:
    if isinstance(node, list):
        return [_rewritten(item, compact=compact) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "json_schema" and node.get("style", "json") == "json":
        return _object_format(node, compact=compact)
    return {key: _rewritten(value, compact=compact) for key, value in node.items()}


def _object_format(node: dict[str, Any], *, compact: bool) -> dict[str, Any]:
    schema = node["json_schema"]
    schema = _OBJECT if schema is True or schema == {} else schema
    if not compact or node.get("any_order") or node.get("excludes"):
        return node | {"json_schema": schema}
    # Same grammar as vLLM's xgrammar backend compiles for response_format.
    grammar = xgrammar.Grammar.from_json_schema(
        json.dumps(schema), any_whitespace=False, separators=(",", ":")
    )
    return {"type": "grammar", "grammar": _ESCAPE.sub(_long_escape, str(grammar))}


def _long_escape(match: re.Match[str]) -> str:
    r"""Return ``\xHH`` as ``\u00HH``.

    xgrammar prints characters from U+0080 to U+00FF as ``\xHH``, but reads all hexadecimal digits
    that follow ``\x``: the printed ``\xdfe`` of "größe" would be one character.
    """
    digits: str | None = match[1]
    return match[0] if digits is None else f"\\u00{digits}"

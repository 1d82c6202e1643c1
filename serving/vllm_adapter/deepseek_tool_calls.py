"""Parses DeepSeek-V3 tool calls from the text of complete and streamed answers.

vLLM 0.32's parser for this format loses calls whose JSON contains a line break and calls cut off by
``max_tokens``, and its streamed arguments differ from those of a complete answer. Here both use the
same ``CallReader``, so they cannot differ.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.deepseekv3_tool_parser import DeepSeekV3ToolParser

_CALLS = "<｜tool▁calls▁begin｜>"
_CALL = "<｜tool▁call▁begin｜>"
_END = "\n```<｜tool▁call▁end｜>"
# A name cannot contain the start of a call, because a stream reports that call immediately.
_HEADER = re.compile(rf"[^<]*<｜tool▁sep｜>(?P<name>(?:(?!{_CALL})[^\n])*)\n```json\n")


@dataclass(slots=True)
class Call:
    """One tool call, as far as its text has arrived."""

    name: str
    begin: int
    end: int
    """Current end of the arguments, which start at ``begin``."""
    streamed: int = -1
    """Position up to which the arguments have been streamed; -1 if the name has not been streamed
    yet."""


class CallReader:
    """Parses a growing text; content and calls already found never change."""

    def __init__(self) -> None:
        self.content_end = 0
        """Position where the content before the calls ends; 0 if it is only white space."""
        self.marked = False
        """Whether the start-of-calls marker has been found."""
        self.calls: list[Call] = []
        self._open = False
        """Whether the last call is incomplete."""
        self._position = 0
        """Position at which to continue searching."""

    def read(self, text: str, *, finished: bool) -> None:
        """Continue parsing ``text``, which must start with the text of the previous call.

        Args:
            text: Content, followed by tool calls.
            finished: Whether the text is complete. If not, a suffix that may be the start of a
                marker is held back.
        """
        if not self.marked:
            self._read_content(text, finished=finished)
        while self.marked and (self._find_end(text) if self._open else self._find_call(text)):
            pass

    def _read_content(self, text: str, *, finished: bool) -> None:
        found = text.find(_CALLS, self._position)
        if found >= 0:
            self.marked = True
            self._position = found + len(_CALLS)
            end = found
        elif finished:
            self.content_end = len(text)
            return
        else:
            self._position = max(0, len(text) - len(_CALLS) + 1)
            end = len(text) - _partial_match_length(text, _CALLS)
        if self.content_end or text[:end].strip():
            self.content_end = end

    def _find_call(self, text: str) -> bool:
        begin = text.find(_CALL, self._position)
        if begin < 0:
            self._position = max(self._position, len(text) - len(_CALL) + 1)
            return False
        header = _HEADER.match(text, begin + len(_CALL))
        if header is not None:
            self.calls.append(Call(header["name"], header.end(), header.end()))
            self._open = True
            self._position = header.end()
            return True
        # The header may be incomplete; once the next call begins, this one is invalid.
        following = text.find(_CALL, begin + len(_CALL))
        self._position = max(begin, following)
        return following >= 0

    def _find_end(self, text: str) -> bool:
        call = self.calls[-1]
        end = text.find(_END, self._position)
        if end < 0:
            call.end = max(call.begin, len(text) - _partial_match_length(text, _END))
            self._position = max(call.begin, len(text) - len(_END) + 1)
            return False
        call.end = end
        self._open = False
        self._position = end + len(_END)
        return True


def _partial_match_length(text: str, mark: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``mark``."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


class DeepSeekToolCalls(DeepSeekV3ToolParser):
    """Replaces vLLM's parser for the same format; one instance per choice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reader = CallReader()
        self._text = ""
        self._content_streamed = 0
        self._forced = False

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """Return the content and calls of a complete answer; the last call may be cut off."""
        del request
        reader = CallReader()
        reader.read(model_output, finished=True)
        calls = [
            ToolCall(
                type="function",
                function=FunctionCall(
                    name=call.name, arguments=model_output[call.begin : call.end]
                ),
            )
            for call in reader.calls
        ]
        return ExtractedToolCallInformation(
            tools_called=reader.marked,
            tool_calls=calls,
            content=model_output[: reader.content_end] or None,
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """Return a delta with the new parts of ``current_text``, or None."""
        del previous_text, delta_text, previous_token_ids, current_token_ids, delta_token_ids
        self._forced = request.tool_choice not in (None, "auto", "none")
        self._text = current_text
        return self._news(finished=False)

    def finish(self) -> DeltaMessage | None:
        """Return a delta with the held-back text at the end of the answer, or None."""
        return self._news(finished=True)

    def _news(self, *, finished: bool) -> DeltaMessage | None:
        reader, text = self._reader, self._text
        reader.read(text, finished=finished)
        # A delta's JSON contains only the fields passed to its constructor.
        fields: dict[str, Any] = {}
        if self._forced and not text[: reader.content_end].strip():
            pass  # complete answers also drop white space before a forced call
        elif reader.content_end > self._content_streamed:
            fields["content"] = text[self._content_streamed : reader.content_end]
            self._content_streamed = reader.content_end
        if parts := [
            part for index, call in enumerate(reader.calls) for part in _part(index, call, text)
        ]:
            fields["tool_calls"] = parts
        return DeltaMessage(**fields) if fields else None


def _part(index: int, call: Call, text: str) -> Sequence[DeltaToolCall]:
    """Return the part of a call that has not been streamed yet, if any."""
    if call.streamed == call.end:
        return ()
    if call.streamed >= 0:
        function = DeltaFunctionCall(arguments=text[call.streamed : call.end])
        part = DeltaToolCall(index=index, function=function)
    else:
        part = DeltaToolCall(
            index=index,
            id=make_tool_call_id(),
            type="function",
            function=DeltaFunctionCall(name=call.name, arguments=text[call.begin : call.end]),
        )
    call.streamed = call.end
    return (part,)

"""DeepSeek-V3's tool calls, read from text: whole, streamed, and over several lines.

vLLM 0.32's parser for this format loses a call whose JSON has a line break and one that is cut
off by ``max_tokens``, and it streams other arguments than it returns in one piece. Here both ways
read the text with the same ``CallReader``, so that they cannot differ.
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
# A name has no beginning of a call in it: a stream has gone on to that call by then.
_HEADER = re.compile(rf"[^<]*<｜tool▁sep｜>(?P<name>(?:(?!{_CALL})[^\n])*)\n```json\n")


@dataclass(slots=True)
class Call:
    """One call, as far as its text is there."""

    name: str
    begin: int
    end: int
    """Where its arguments begin and end in the text; they are cut off if the text is."""
    streamed: int = -1
    """Up to where its arguments were streamed; -1: not even its name."""


class CallReader:
    """Reads a text that grows; what it has found once does not change any more."""

    def __init__(self) -> None:
        self.content_end = 0
        """Where the content before the calls ends; white space alone before a call is none."""
        self.marked = False
        """Whether calls begin in the text."""
        self.calls: list[Call] = []
        self._open = False
        """The last call's end has not come yet."""
        self._position = 0
        """Where to look for what comes next."""

    def read(self, text: str, *, finished: bool) -> None:
        """Look at a text that begins with the one of last time.

        Args:
            text: content, then calls.
            finished: nothing follows; otherwise what may be the beginning of markup is left out.
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
            end = len(text) - _begun(text, _CALLS)
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
        # It may still come; if the next call begins already, this one is none.
        following = text.find(_CALL, begin + len(_CALL))
        self._position = max(begin, following)
        return following >= 0

    def _find_end(self, text: str) -> bool:
        call = self.calls[-1]
        end = text.find(_END, self._position)
        if end < 0:
            call.end = max(call.begin, len(text) - _begun(text, _END))
            self._position = max(call.begin, len(text) - len(_END) + 1)
            return False
        call.end = end
        self._open = False
        self._position = end + len(_END)
        return True


def _begun(text: str, mark: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``mark``."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


class DeepSeekToolCalls(DeepSeekV3ToolParser):
    """Stands in for vLLM's parser of the same format; each choice has one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reader = CallReader()
        self._text = ""
        self._content_streamed = 0
        self._forced = False

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """Return content and calls of a whole answer; one that is cut off is the last of them."""
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
        """Return what is new in ``current_text``; nothing new is None."""
        del previous_text, delta_text, previous_token_ids, current_token_ids, delta_token_ids
        self._forced = request.tool_choice not in (None, "auto", "none")
        self._text = current_text
        return self._news(finished=False)

    def finish(self) -> DeltaMessage | None:
        """Return what was kept back, now that nothing follows."""
        return self._news(finished=True)

    def _news(self, *, finished: bool) -> DeltaMessage | None:
        reader, text = self._reader, self._text
        reader.read(text, finished=finished)
        # Only what is given is written into a delta's JSON.
        fields: dict[str, Any] = {}
        if self._forced and not text[: reader.content_end].strip():
            pass  # white space in place of a call is dropped from whole answers, too
        elif reader.content_end > self._content_streamed:
            fields["content"] = text[self._content_streamed : reader.content_end]
            self._content_streamed = reader.content_end
        if parts := [
            part for index, call in enumerate(reader.calls) for part in _part(index, call, text)
        ]:
            fields["tool_calls"] = parts
        return DeltaMessage(**fields) if fields else None


def _part(index: int, call: Call, text: str) -> Sequence[DeltaToolCall]:
    """Return what was not streamed of a call: nothing or one part."""
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

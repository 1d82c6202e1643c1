"""Finish reason of chats whose last tool call was cut off by a stop string.

vLLM 0.32 finishes them with ``tool_calls``, and a client would run a call with a part of its
arguments. Here they finish with ``stop``, as other text that is cut off by a stop string.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

_DATA, _END = "data: ", "\n\n"
_PARTS = '"tool_calls":[{'
_CLAIMS = '"finish_reason":"tool_calls"'


def is_cut(stop_reason: int | str | None, arguments: str) -> bool:
    """Return whether a stop string cut off a call.

    Args:
        stop_reason: that of the choice: the stop string, the id of a stop token, or None.
        arguments: arguments of the last call, as far as generated.
    """
    if not isinstance(stop_reason, str):
        return False
    try:
        msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return True
    return False


async def without_cut_calls(events: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """Yield the events of a streamed chat with corrected finish reasons."""
    last: dict[int, tuple[int, str]] = {}
    async for event in events:
        yield _corrected(event, last) if _PARTS in event or _CLAIMS in event else event


def _corrected(event: str, last: dict[int, tuple[int, str]]) -> str:
    """Return an event with the right finish reasons.

    Args:
        event: an event with parts of calls, or with a finish reason.
        last: index and arguments of the last call of each choice; updated.
    """
    chunk: Any = msgspec.json.decode(event.removeprefix(_DATA))
    changed = False
    for choice in chunk["choices"]:
        number = choice["index"]
        for part in choice["delta"].get("tool_calls") or ():
            index, arguments = last.get(number, (-1, ""))
            if index != part["index"]:
                arguments = ""
            last[number] = part["index"], arguments + (part["function"].get("arguments") or "")
        if choice["finish_reason"] == "tool_calls":
            _, arguments = last.get(number, (-1, ""))
            if is_cut(choice.get("stop_reason"), arguments):
                choice["finish_reason"] = "stop"
                changed = True
    return f"{_DATA}{msgspec.json.encode(chunk).decode()}{_END}" if changed else event

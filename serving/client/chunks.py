"""Builds requests and parses chunks of OpenAI's streaming API, for this router and others."""

import contextlib
import json
from typing import Any

import msgspec

from serving.client.chat import Delta, GenerateOptions, GenerateRequest, Usage, as_text
from serving.client.errors import ClientError, message_of

DONE = b"[DONE]"
"""Data of the event that ends a stream."""
SHOWN = 300
"""Maximum length of a server's message in an error, characters."""


def path_of(options: GenerateOptions) -> str:
    """Return the route of a request."""
    return "/v1/chat/completions" if options.endpoint == "chat" else "/v1/completions"


def body_of(request: GenerateRequest, options: GenerateOptions) -> dict[str, Any]:
    """Return the JSON body of a streamed request; options that are None are omitted."""
    body: dict[str, Any] = {
        "model": options.model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.endpoint == "chat":
        body["messages"] = [
            {"role": message.role, "content": message.content} for message in request.messages
        ]
    else:
        body["prompt"] = as_text(request.messages)
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if options.temperature is not None:
        body["temperature"] = options.temperature
    if options.ignore_eos:
        body["ignore_eos"] = True
    return body


def data_of(line: bytes) -> bytes | None:
    """Return the data in a line of server-sent events; None for comments, ids and blank lines."""
    return line[5:].strip() if line.startswith(b"data:") else None


class _Part(msgspec.Struct, frozen=True, gc=False):
    """The text of a chat delta, or of a completions choice."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    text: str | None = None


class _Choice(msgspec.Struct, frozen=True, gc=False):
    delta: _Part | None = None
    text: str | None = None


class _Chunk(msgspec.Struct, frozen=True, gc=False):
    """The fields of a chunk that are used."""

    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


def parse_chunk(data: bytes) -> Delta:
    """Return the part of the answer in a chunk.

    Raises:
        ClientError: The data is an error event or not a chunk (kind ``broken``).
    """
    try:
        chunk = _decode(data)
    except msgspec.MsgspecError:
        return parse_unusual_chunk(data)
    if chunk.error is not None:
        raise ClientError("broken", _error_text(data))
    usage = None if chunk.usage is None else _usage(chunk.usage)
    content = reasoning = ""
    for choice in chunk.choices or ():
        delta = choice.delta
        if delta is None:
            content += choice.text or ""
        else:
            # Servers use either name, or send the same text under both.
            reasoning += delta.reasoning or delta.reasoning_content or ""
            content += delta.content or delta.text or ""
    return Delta(content, reasoning, usage)


def parse_unusual_chunk(data: bytes) -> Delta:
    """Parse a chunk whose fields have other types than OpenAI's; see ``parse_chunk``.

    Raises:
        ClientError: The data is an error event or not a chunk (kind ``broken``).
    """
    try:
        chunk = json.loads(data)
        if chunk.get("error") is not None:
            raise ClientError("broken", _error_text(data))
        content = reasoning = ""
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or choice
            reasoning += delta.get("reasoning") or delta.get("reasoning_content") or ""
            content += delta.get("content") or delta.get("text") or ""
        usage = chunk.get("usage")
        return Delta(content, reasoning, None if usage is None else _usage(usage))
    except (ValueError, TypeError, AttributeError) as error:
        raise ClientError("broken", f"invalid chunk in the stream: {data[:SHOWN]!r}") from error


def _usage(usage: dict[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        details.get("cached_tokens") or 0,
    )


def _error_text(data: bytes) -> str:
    return error_text(data.decode("utf-8", "replace"))


def error_text(body: str) -> str:
    """Return the message of an error body, on one line and at most 300 characters long."""
    with contextlib.suppress(ValueError):
        body = message_of(json.loads(body))
    return " ".join(body.split())[:SHOWN]

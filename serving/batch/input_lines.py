"""The lines of an input file: splitting with bounded memory, and validation of each.

Pure functions. They check the file format only: the request in a line is validated when it runs, by
the same code as any other request.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import msgspec
from msgspec import UNSET, UnsetType

ENDPOINTS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
"""Endpoints of batches."""
MAX_CUSTOM_ID = 512
_PREFIX_BYTES = 1024
"""Bytes of a prompt without a system message by which lines are grouped."""


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not empty."""

    number: int
    """Line number, counted from 1, including empty lines."""
    start: int
    """Offset in the file, bytes."""
    length: int
    """Length without the line break, bytes."""
    data: bytes | None
    """None: the line is longer than the limit."""


@dataclass(frozen=True, slots=True)
class InputLine:
    """A valid line."""

    custom_id: str
    body: bytes
    prefix: int
    """Equal for lines whose prompts have the same beginning; signed, 64 bits."""


class InvalidLine(ValueError):
    """A line that cannot be run.

    Args:
        code: Stable code for programs.
        message: What is wrong.
        custom_id: The line's ``custom_id``, if it could be read.
    """

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    stream: bool | None = None
    background: bool | None = None
    messages: msgspec.Raw | UnsetType = UNSET
    prompt: msgspec.Raw | UnsetType = UNSET
    input: msgspec.Raw | UnsetType = UNSET
    instructions: msgspec.Raw | UnsetType = UNSET


class _Message(msgspec.Struct):
    role: str = ""


class _Id(msgspec.Struct):
    custom_id: str | None = None


_lines = msgspec.json.Decoder(_Line)
_bodies = msgspec.json.Decoder(_Body)
_lists = msgspec.json.Decoder(list[msgspec.Raw])
_messages = msgspec.json.Decoder(_Message)
_ids = msgspec.json.Decoder(_Id)


def split_lines(parts: Iterable[bytes], max_bytes: int) -> Iterator[RawLine]:
    """Yield the lines of a file; at most one part and one line are in memory.

    Args:
        parts: The file's content, split at arbitrary positions.
        max_bytes: Maximum length of a line; longer ones are skipped without being kept.
    """
    number, start, length = 1, 0, 0
    kept: list[bytes] = []
    for part in parts:
        at = 0
        while (end := part.find(b"\n", at)) >= 0:
            piece = part[at:end]
            length += len(piece)
            if length <= max_bytes:
                kept.append(piece)
            yield from _whole(number, start, length, kept, max_bytes)
            number, start, length = number + 1, start + length + 1, 0
            kept.clear()
            at = end + 1
        length += len(part) - at
        if length <= max_bytes:
            kept.append(part[at:])
        else:
            kept.clear()
    yield from _whole(number, start, length, kept, max_bytes)


def _whole(
    number: int, start: int, length: int, kept: list[bytes], max_bytes: int
) -> Iterator[RawLine]:
    if length > max_bytes:
        yield RawLine(number, start, length, None)
        return
    data = b"".join(kept)
    if data.strip():
        yield RawLine(number, start, length, data)


def parse_line(data: bytes, endpoint: str) -> InputLine:
    """Validate a line: ``{"custom_id", "method": "POST", "url", "body"}``.

    Args:
        data: The line.
        endpoint: The endpoint of the batch, which ``url`` must be.

    Raises:
        InvalidLine: The line cannot be run.
    """
    try:
        line = _lines.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidLine("invalid_line", str(error), _custom_id(data)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidLine("invalid_json_line", f"not valid JSON: {error}") from error
    name = line.custom_id
    if not 0 < len(name) <= MAX_CUSTOM_ID or "\0" in name:
        raise InvalidLine(
            "invalid_custom_id",
            f"custom_id must have 1 to {MAX_CUSTOM_ID} characters, none of them NUL",
        )
    if line.method != "POST":
        raise InvalidLine("invalid_method", f"method must be POST, got {line.method!r}", name)
    if line.url != endpoint:
        raise InvalidLine(
            "mismatched_endpoint",
            f"url must be the endpoint of the batch, {endpoint}, got {line.url!r}",
            name,
        )
    body = bytes(line.body)
    try:
        request = _bodies.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidLine("invalid_body", f"body: {error}", name) from error
    for field in ("stream", "background"):
        if getattr(request, field):
            raise InvalidLine(f"{field}_unsupported", f"body.{field} must not be true", name)
    return InputLine(name, body, _prefix(request))


def _custom_id(data: bytes) -> str | None:
    try:
        return _ids.decode(data).custom_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _prefix(request: _Body) -> int:
    start = b""
    if request.messages is not UNSET:
        start = _system_message(bytes(request.messages))
    for field in (request.instructions, request.messages, request.input, request.prompt):
        if field is not UNSET:
            start = start or bytes(field)[:_PREFIX_BYTES]
    return int.from_bytes(blake2b(start, digest_size=8).digest(), "big", signed=True)


def _system_message(messages: bytes) -> bytes:
    """Return the first message if it is the system's, otherwise nothing."""
    try:
        first = bytes(next(iter(_lists.decode(messages)), b"{}"))
        return first if _messages.decode(first).role in {"system", "developer"} else b""
    except (msgspec.DecodeError, RecursionError):
        return b""

"""The JSON that vLLM answers with, as far as the protos carry it. No I/O.

Read with msgspec: one decoder for whole answers and for chunks, and it is faster than going
through pydantic again.
"""

import msgspec


class TokenDetails(msgspec.Struct):
    """Parts of a token count."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class UsageJson(msgspec.Struct):
    """Usage as vLLM reports it."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    total_tokens: int = 0
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None


class TopLogprob(msgspec.Struct):
    """A candidate at one position."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """The chosen token at one position, and the candidates."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a chat choice."""

    content: list[TokenLogprob] | None = None


class Function(msgspec.Struct):
    """A call's name and arguments, or the next piece of them."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A tool call, or a piece of one."""

    id: str | None = None
    index: int = 0
    function: Function | None = None


class ChatMessage(msgspec.Struct):
    """A message, or what it gained."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []


class ChatChoice(msgspec.Struct):
    """A choice of a chat answer (message) or of a chunk (delta)."""

    index: int = 0
    message: ChatMessage | None = None
    delta: ChatMessage | None = None
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatJson(msgspec.Struct):
    """A chat answer or a chunk of one."""

    id: str = ""
    model: str = ""
    created: int = 0
    choices: list[ChatChoice] = []
    usage: UsageJson | None = None
    prompt_token_ids: list[int] | None = None


class TextLogprobs(msgspec.Struct):
    """Log-probabilities of a completion, in parallel lists."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []


class TextChoice(msgspec.Struct):
    """A choice of a completion, or what it gained."""

    index: int = 0
    text: str = ""
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class TextJson(msgspec.Struct):
    """A completion or a chunk of one."""

    id: str = ""
    model: str = ""
    created: int = 0
    choices: list[TextChoice] = []
    usage: UsageJson | None = None


_chat_decoder = msgspec.json.Decoder(ChatJson)
_text_decoder = msgspec.json.Decoder(TextJson)


def decode_chat(data: str | bytes) -> ChatJson:
    """Read a chat answer or chunk."""
    return _chat_decoder.decode(data)


def decode_text(data: str | bytes) -> TextJson:
    """Read a completion or a chunk of one."""
    return _text_decoder.decode(data)

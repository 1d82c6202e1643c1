"""msgspec structs for the parts of vLLM's response JSON that the protos carry. No I/O.

One decoder handles complete responses and stream chunks, and is faster than validating them again
with pydantic.
"""

import msgspec


class TokenDetails(msgspec.Struct):
    """Breakdown of a token count."""

    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class UsageJson(msgspec.Struct):
    """Token usage as reported by vLLM."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    total_tokens: int = 0
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None


class TopLogprob(msgspec.Struct):
    """A candidate token at one position."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """The chosen token at one position, with the candidates."""

    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a chat choice."""

    content: list[TokenLogprob] | None = None


class Function(msgspec.Struct):
    """Name and arguments of a tool call, or the next part of them."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A tool call, or a part of one."""

    id: str | None = None
    index: int = 0
    function: Function | None = None


class ChatMessage(msgspec.Struct):
    """A message, or the part of it that a chunk adds."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] = []


class ChatChoice(msgspec.Struct):
    """A choice of a chat response (``message``) or of a chunk (``delta``)."""

    index: int = 0
    message: ChatMessage | None = None
    delta: ChatMessage | None = None
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatJson(msgspec.Struct):
    """A chat response or a chunk of one."""

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
    """A choice of a completion, or the part of it that a chunk adds."""

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
    """Decode a chat response or a chunk of one."""
    return _chat_decoder.decode(data)


def decode_text(data: str | bytes) -> TextJson:
    """Decode a completion or a chunk of one."""
    return _text_decoder.decode(data)

"""Requests to a router and its streamed answers, in types common to REST and gRPC."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

Endpoint = Literal["chat", "completions"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, without the reasoning of earlier answers."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request to generate one answer."""

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    """Maximum length of the answer, tokens. None means the server's default."""
    session: str | None = None
    """Session id (header ``x-session-id``); requests of a session prefer the same rank."""


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Options shared by all requests of a client."""

    model: str
    endpoint: Endpoint = "chat"
    temperature: float | None = None
    """Sampling temperature. None means the server's default."""
    ignore_eos: bool = False
    """Whether to generate exactly ``max_tokens`` tokens (vLLM and this router)."""
    timeout: float = 600.0
    """Timeout of a whole request (asyncio, gRPC) or between two chunks (blocking REST), seconds."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts reported by the server."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


class Delta(msgspec.Struct, frozen=True, gc=False):
    """The next part of a streamed answer: text, the final usage, or both."""

    content: str = ""
    reasoning: str = ""
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """Reasoning followed by content, the order in which models generate them."""
        return self.reasoning + self.content

    def parts(self) -> Iterator[tuple[Literal["reasoning", "content"], str]]:
        """Yield the non-empty parts, each with its kind."""
        if self.reasoning:
            yield "reasoning", self.reasoning
        if self.content:
            yield "content", self.content


class ChatClient(Protocol):
    """A blocking client; implemented by ``RestClient`` and ``GrpcClient``."""

    def generate(self, request: GenerateRequest, options: GenerateOptions) -> Iterator[Delta]:
        """Yield the answer as it arrives; closing the iterator cancels the request.

        Raises:
            ServingError: The request failed; the message contains the reason or the address.
        """
        ...


def as_text(messages: tuple[Message, ...]) -> str:
    """Return a conversation as one prompt, for the completions endpoint, which has no roles."""
    return "\n".join(message.content for message in messages)

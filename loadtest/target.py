"""What is loaded: one interface, one error."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

Endpoint = Literal["chat", "completions"]
ErrorKind = Literal["connect", "refused", "rejected", "broken", "timeout"]


class TargetError(Exception):
    """A request failed.

    Kinds: ``connect``: nobody answers there; ``refused``: come back later (429, 503);
    ``rejected``: any other error status; ``broken``: the answer ended before its end;
    ``timeout``: it took too long.
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as a target sends it."""

    messages: tuple[Message, ...]
    max_tokens: int
    session: str
    """Sent as x-session-id."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server counted."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of an answer, or its usage, or both."""

    text: str
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Style:
    """How every request of a run is made."""

    model: str
    endpoint: Endpoint = "chat"
    ignore_eos: bool = False
    """Ask vLLM to go on to ``max_tokens``, whatever the model says."""
    temperature: float | None = 0.0
    timeout: float = 120.0
    """Seconds for a whole request."""


class Target(Protocol):
    """A server under load."""

    def send(self, ask: Ask, style: Style) -> AsyncIterator[Piece]:
        """Yield the answer as it comes.

        Raises:
            TargetError: it failed.
        """
        ...

    async def models(self) -> list[str]:
        """Return the ids of the models it serves.

        Raises:
            TargetError: it does not answer, or refuses to say.
        """
        ...

    async def close(self) -> None:
        """Let go of its connections."""
        ...


def as_text(messages: tuple[Message, ...]) -> str:
    """Return a conversation as a text to be continued, for endpoints without roles."""
    return "\n".join(message.content for message in messages)

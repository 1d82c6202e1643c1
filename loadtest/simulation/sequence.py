"""A request in the model, and the names of its prompt's blocks."""

from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from serving.link.block_hashes import PromptNames
from serving.request_context import Priority

_COPIES = 1 << 20


class TraceNames(PromptNames):
    """Block names from a trace: its ids stand for blocks with all that is before them.

    Copies of a trace share its very first block (the system prompt) and nothing else.
    """

    __slots__ = ("_blocks",)

    def __init__(self, prompt_tokens: int, ids: Items[int], copy: int, block: int) -> None:
        """Name the full blocks of ``prompt_tokens`` tokens; ``ids`` are one a ``block``."""
        super().__init__(range(prompt_tokens))
        full = prompt_tokens // block
        self._blocks = [1 + (one * _COPIES + copy if one else 0) for one in ids[:full]]

    def reusable(self, block_size: int) -> Iterator[int]:
        """Yield the names that a cache can be of use for: the last token is always computed."""
        return iter(self._blocks[: (len(self.token_ids) - 1) // block_size])

    def all(self, block_size: int) -> list[int]:
        """Return the names of all full blocks."""
        del block_size
        return self._blocks


@dataclass(slots=True, eq=False)
class Sequence:
    """One request and how far it is. Also what stands in the admission queue."""

    number: int
    at: float
    """When it came, in seconds."""
    prompt_tokens: int
    output_tokens: int
    names: PromptNames = field(default_factory=PromptNames)
    left: int = 0
    """Tokens still to generate."""
    asked_tokens: int = 0
    """Of the prompt as it came; a resumed one is longer."""
    uncomputed: int = 0
    """Prompt tokens still to compute, once it is let in."""
    cached: int = 0
    kv_tokens: int = 0
    """Reserved on its rank."""
    ends_at_tick: int = 0
    overhead: float = 0.0
    """Seconds that client and router add to its first token."""
    launched_at: float | None = None
    launched_tokens: int = 0
    """What it counted for when it was launched."""
    first_at: float | None = None
    ended_at: float | None = None
    refused: bool = False
    resumes: int = 0

    def __post_init__(self) -> None:
        """Begin with everything to do."""
        self.left = self.output_tokens
        self.asked_tokens = self.prompt_tokens

    def resume(self) -> None:
        """Go on elsewhere: what was generated becomes part of the prompt."""
        self.prompt_tokens = self.asked_tokens + self.output_tokens - self.left
        self.resumes += 1

    @property
    def itl(self) -> float | None:
        """Mean seconds from token to token; none with fewer than two."""
        if self.first_at is None or self.ended_at is None or self.output_tokens < 2:  # noqa: PLR2004
            return None
        return (self.ended_at - self.first_at) / (self.output_tokens - 1)

    # -- as the admission queue sees it ----------------------------------------------------

    @property
    def tenant(self) -> str:
        """One for all."""
        return "trace"

    @property
    def priority(self) -> Priority:
        """The same for all."""
        return Priority.STANDARD

    @property
    def tokens(self) -> int:
        """Prompt and expected output."""
        return max(self.prompt_tokens + self.left, 1)

    @property
    def weight(self) -> float:
        """Of its tenant."""
        return 1.0

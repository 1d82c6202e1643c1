"""A simulated request, and the block hashes of its prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serving.link.block_hashes import PromptBlockHashes
from serving.request_context import Priority

_COPIES = 1 << 20


class TraceNames(PromptBlockHashes):
    """Block hashes from a trace, in which an id identifies a block and all blocks before it.

    Copies of a trace share only the first block (the system prompt).
    """

    __slots__ = ("_blocks",)

    def __init__(self, prompt_tokens: int, ids: Sequence[int], copy: int, block: int) -> None:
        """Hash the full blocks of a prompt; ``ids`` has one id per ``block`` tokens."""
        super().__init__(range(prompt_tokens))
        full = prompt_tokens // block
        self._blocks = [1 + (one * _COPIES + copy if one else 0) for one in ids[:full]]

    def reusable(self, block_size: int) -> Iterator[int]:
        """Yield the hashes of reusable blocks; the last prompt token is always computed."""
        return iter(self._blocks[: (len(self.token_ids) - 1) // block_size])

    def all(self, block_size: int) -> list[int]:
        """Return the hashes of all full blocks."""
        del block_size
        return self._blocks


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """A request and its progress; it is also the item in the admission queue."""

    number: int
    at: float
    """Arrival time, seconds."""
    prompt_tokens: int
    output_tokens: int
    names: PromptBlockHashes = field(default_factory=PromptBlockHashes)
    left: int = 0
    """Number of tokens still to generate."""
    asked_tokens: int = 0
    """Number of prompt tokens at arrival; the prompt of a resumed request is longer."""
    uncomputed: int = 0
    """Number of prompt tokens still to compute, once the request is scheduled."""
    cached: int = 0
    kv_tokens: int = 0
    """Number of KV-cache tokens reserved on its rank."""
    ends_at_tick: int = 0
    overhead: float = 0.0
    """Seconds that client and router add to its time to first token."""
    placed_at: float | None = None
    placed_tokens: int = 0
    """Value of ``tokens`` at the time of dispatch."""
    first_at: float | None = None
    ended_at: float | None = None
    refused: bool = False
    resumes: int = 0

    def __post_init__(self) -> None:
        """Initialize the remaining work."""
        self.left = self.output_tokens
        self.asked_tokens = self.prompt_tokens

    def resume(self) -> None:
        """Prepare for another rank: generated tokens become part of the prompt."""
        self.prompt_tokens = self.asked_tokens + self.output_tokens - self.left
        self.resumes += 1

    @property
    def itl(self) -> float | None:
        """Mean inter-token latency, seconds; None with fewer than two tokens."""
        if self.first_at is None or self.ended_at is None or self.output_tokens < 2:  # noqa: PLR2004
            return None
        return (self.ended_at - self.first_at) / (self.output_tokens - 1)

    # -- as the admission queue sees it ----------------------------------------------------

    @property
    def tenant(self) -> str:
        """Tenant; the same for all requests."""
        return "trace"

    @property
    def priority(self) -> Priority:
        """Priority; the same for all requests."""
        return Priority.STANDARD

    @property
    def tokens(self) -> int:
        """Number of prompt tokens plus remaining output tokens."""
        return max(self.prompt_tokens + self.left, 1)

    @property
    def weight(self) -> float:
        """Weight of the tenant."""
        return 1.0

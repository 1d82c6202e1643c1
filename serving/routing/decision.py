"""Input and result of routing: the request, and the decision about it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serving.link.block_hashes import PromptBlockHashes
from serving.routing.snapshot import RankId


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """A request's requirements for a rank.

    Built once for each prompt to be sent; caches the computed block hashes.
    """

    prompt_tokens: int
    output_tokens: int = 0
    """Number of expected output tokens, over all choices."""
    prompt: PromptBlockHashes = field(default_factory=PromptBlockHashes, compare=False, repr=False)
    """Block hashes of the prompt; if empty, they are unknown and no cached prefix is looked up."""
    session_id: str | None = None
    """Requests of one session prefer the same rank if its load permits. None if there is no
    session."""
    adapter: str | None = None
    """Key of the request's LoRA adapter (``protocol.adapter_key``). None: no adapter."""
    avoid: Collection[tuple[str, str]] = ()
    """Groups (id, epoch) to exclude, because another suspect is on trial there."""
    explain: bool = False
    """Whether to keep the scores of the best candidates in the decision."""
    tokens: int = field(init=False, compare=False)
    """Number of prompt tokens plus expected output tokens."""

    def __post_init__(self) -> None:
        """Compute the total once for all filters and scorers."""
        object.__setattr__(self, "tokens", self.prompt_tokens + self.output_tokens)


class DecisionKind(StrEnum):
    """The deciding factor; used as a metric label."""

    ONLY = "only"
    """No other rank could run the request."""
    SESSION = "session"
    """The rank served the session before."""
    ADAPTER = "adapter"
    """The rank holds the request's adapter, or is to hold it."""
    PREFIX = "prefix"
    """The rank caches the beginning of the prompt."""
    LOAD = "load"
    """None of the above applies; load, free KV cache and balance decided."""


class NoCandidateKind(StrEnum):
    """The condition that must change before a rank can run the request."""

    NOT_READY = "not_ready"
    """A group must become ready."""
    NO_ROOM = "no_room"
    """A rank must finish other requests."""
    UNSUITABLE = "unsuitable"
    """Other ranks must join: no rank of a ready group runs LoRA adapters."""
    TOO_LARGE = "too_large"
    """The request must be smaller: no rank of this fleet can ever run it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One candidate and its scores."""

    rank_id: RankId
    total: float
    """Weighted sum of the scores."""
    scores: Mapping[str, float]
    """Score of each scorer by name, 0 to 1, before weights."""

    def to_json(self) -> dict[str, Any]:
        """Return the scores as a flat object, rounded to three digits."""
        rounded = {name: round(score, 3) for name, score in self.scores.items()}
        return {
            "group": self.rank_id.group_id,
            "rank": self.rank_id.rank,
            "total": round(self.total, 3),
            **rounded,
        }


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The chosen rank, and the reason."""

    rank_id: RankId
    reason: str
    """Reason for the choice, as a sentence."""
    kind: DecisionKind = DecisionKind.LOAD
    matched_tokens: int = 0
    """Number of prompt tokens that the rank presumably has cached."""
    candidates: tuple[Scored, ...] = ()
    """The best candidates, best first; empty unless ``explain`` is set in the request."""
    filtered: Mapping[str, int] = field(default_factory=dict)
    """Number of ranks that each filter removed; filters that removed none are omitted."""

    def explain(self) -> dict[str, Any]:
        """Return the explanation as a JSON object."""
        return {
            "group": self.rank_id.group_id,
            "rank": self.rank_id.rank,
            "kind": self.kind.value,
            "reason": self.reason,
            "matched_tokens": self.matched_tokens,
            "filtered": dict(self.filtered),
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }


@dataclass(frozen=True, slots=True)
class NoCandidate:
    """No rank can run the request now, with the reason."""

    reason: str
    kind: NoCandidateKind = NoCandidateKind.NOT_READY

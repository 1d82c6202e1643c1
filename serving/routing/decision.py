"""What routing is asked and what it answers."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from serving.link.block_hashes import PromptNames
from serving.routing.snapshot import RankSnapshot

RankKey = tuple[str, str, int]
"""Group id, epoch, rank."""


def key_of(rank: RankSnapshot) -> RankKey:
    """Name the rank."""
    return rank.group_id, rank.epoch, rank.rank


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs. Made once a request: it keeps what was computed about its prompt."""

    prompt_tokens: int
    output_tokens: int = 0
    """Expected, over all choices."""
    prompt: PromptNames = field(default_factory=PromptNames, compare=False, repr=False)
    """The prompt's tokens; empty: nothing is known of them, no prefix is looked for."""
    session_id: str | None = None
    """Requests of one session go to one rank as long as its load allows."""
    avoid: Collection[tuple[str, str]] = ()
    """Groups (id, epoch) that may not be used: a request that should not meet this one is there."""
    explain: bool = False
    """Keep the scores of all candidates, not only of the one that is picked."""

    @property
    def tokens(self) -> int:
        """Prompt and expected output together."""
        return self.prompt_tokens + self.output_tokens


class PickKind(StrEnum):
    """What made the difference, in one word; a label of metrics."""

    ONLY = "only"
    """No other rank could take it."""
    SESSION = "session"
    """Its session is here."""
    PREFIX = "prefix"
    """The beginning of its prompt is in the rank's cache."""
    LOAD = "load"
    """None of these: load, cache room and balance."""


class NoPickKind(StrEnum):
    """What would have to change."""

    NOT_READY = "not_ready"
    """A group must become ready."""
    NO_ROOM = "no_room"
    """A rank must finish something."""
    TOO_LARGE = "too_large"
    """The request itself: no rank here ever takes it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One candidate and how it scored."""

    key: RankKey
    total: float
    scores: Mapping[str, float]
    """By scorer, before weights."""

    def to_json(self) -> dict[str, Any]:
        """Return it compactly."""
        group_id, _, rank = self.key
        rounded = {name: round(score, 3) for name, score in self.scores.items()}
        return {"group": group_id, "rank": rank, "total": round(self.total, 3), **rounded}


@dataclass(frozen=True, slots=True)
class Pick:
    """The rank that takes the request, and why."""

    group_id: str
    epoch: str
    rank: int
    reason: str
    """In words."""
    kind: PickKind = PickKind.LOAD
    matched_tokens: int = 0
    """Prompt tokens that the rank's cache is believed to hold."""
    candidates: tuple[Scored, ...] = ()
    """The best few, best first; empty unless the demand asked for an explanation."""
    filtered: Mapping[str, int] = field(default_factory=dict)
    """How many ranks each filter took out; only filters that took any."""

    def explain(self) -> dict[str, Any]:
        """Return why, compactly, for JSON."""
        return {
            "group": self.group_id,
            "rank": self.rank,
            "kind": self.kind.value,
            "reason": self.reason,
            "matched_tokens": self.matched_tokens,
            "filtered": dict(self.filtered),
            "candidates": [candidate.to_json() for candidate in self.candidates],
        }


@dataclass(frozen=True, slots=True)
class NoPick:
    """No rank takes the request now, and why."""

    reason: str
    kind: NoPickKind = NoPickKind.NOT_READY

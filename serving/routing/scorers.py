"""Scorers: rate how well each candidate suits a request, from 0 to 1.

Pure functions of one ``ScoringContext``. A scorer that does not apply (no session, no matching
prefix) returns None, which counts as 0 for every candidate. deploy/docs/routing.md contains the
formulas.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import nlargest

from serving.routing.decision import RoutingRequest
from serving.routing.snapshot import RankId
from serving.routing.views import FleetView, RankView
from serving.settings import RoutingSettings

_BEST_MATCHES = 8
"""Maximum number of prefix matches that are always candidates; limited because all ranks can cache
a common system prompt."""


@dataclass(frozen=True, slots=True)
class AffinityHints:
    """State remembered by the router that favors some ranks for a request."""

    matched: Mapping[RankId, int] = field(default_factory=dict)
    """Prompt tokens that each rank caches; ranks without any are omitted."""
    guessed: Collection[RankId] = ()
    """Ranks that do not report their cache; their ``matched`` is based on prompts sent to them."""
    sticky: RankId | None = None
    """The rank that served the session last; None if there is no session, or if it is new or
    expired."""
    adapter: Mapping[RankId, float] | None = None
    """Value of each rank for the request's LoRA adapter, 0 to 1; ranks without any are omitted.
    None: no adapter."""

    def ranks(self) -> set[RankId]:
        """Return the ranks with the session or one of the longest prefix matches."""
        best: Iterable[RankId] = self.matched
        if len(self.matched) > _BEST_MATCHES:
            best = nlargest(_BEST_MATCHES, self.matched, key=self.matched.__getitem__)
        found = set(best)
        if self.sticky is not None:
            found.add(self.sticky)
        if self.adapter is not None:
            found.update(nlargest(_BEST_MATCHES, self.adapter, key=self.adapter.__getitem__))
        return found


@dataclass(frozen=True, slots=True)
class ScoringContext:
    """Input of all scorers; every list is [candidates].

    A pass over hundreds of ranks costs as much as the rest of a decision, so values are computed
    once, into lists, without a function call per rank.
    """

    candidates: list[RankView]
    request: RoutingRequest
    settings: RoutingSettings
    hints: AffinityHints
    outstanding: list[int]
    """Outstanding tokens of each candidate."""
    busiest: list[int]
    """Outstanding tokens of the busiest rank in the candidate's group."""
    affinity_limit: float
    """Outstanding tokens above which a rank's cache and sessions are ignored."""

    @classmethod
    def of(
        cls,
        fleet: FleetView,
        candidates: list[RankView],
        request: RoutingRequest,
        settings: RoutingSettings,
        hints: AffinityHints,
    ) -> "ScoringContext":
        """Compute the lists once for all scorers."""
        outstanding = [rank.outstanding_tokens for rank in candidates]
        # Group ids are unique among the groups in a snapshot.
        busiest = {
            group.group_id: max([rank.outstanding_tokens for rank in group.ranks], default=0)
            for group in fleet.groups
        }
        mean = sum(outstanding) / len(outstanding)
        return cls(
            candidates,
            request,
            settings,
            hints,
            outstanding,
            [busiest[rank.group_id] for rank in candidates],
            mean * settings.session_load_bound + settings.affinity_slack,
        )


Scorer = Callable[[ScoringContext], list[float] | None]
RunScorer = Callable[[str, Scorer, ScoringContext], list[float] | None]
"""Function that runs a scorer, given its name; measures time outside the scorers, which stay
pure."""


def run_scorer(name: str, scorer: Scorer, context: ScoringContext) -> list[float] | None:
    """Run a scorer without measuring its time."""
    del name
    return scorer(context)


def load(context: ScoringContext) -> list[float]:
    """Prefer the fewest outstanding tokens: (least + request) / (candidate + request)."""
    own = max(context.request.tokens, 1)
    best = min(context.outstanding) + own
    return [best / (tokens + own) for tokens in context.outstanding]


def kv_room(context: ScoringContext) -> list[float]:
    """Prefer the most free KV cache, as reported by the rank for all routers: 1 - usage."""
    return [
        1.0 - used if 0.0 <= (used := rank.load.kv_usage) <= 1.0 else float(used < 0)
        for rank in context.candidates
    ]


def prefix(context: ScoringContext) -> list[float] | None:
    """Prefer ranks that cache the beginning of the prompt: matched tokens / prompt tokens.

    Multiplied by ``history_trust`` if the match is a guess; 0 above the affinity limit.
    """
    hints, limit, prompt = context.hints, context.affinity_limit, context.request.prompt_tokens
    if not hints.matched or not prompt:
        return None
    trust = context.settings.history_trust
    worth = {
        key: min(tokens / prompt, 1.0) * (trust if key in hints.guessed else 1.0)
        for key, tokens in hints.matched.items()
    }
    return [
        worth.get(rank.rank_id, 0.0) if tokens <= limit else 0.0
        for rank, tokens in zip(context.candidates, context.outstanding, strict=True)
    ]


def session(context: ScoringContext) -> list[float] | None:
    """Prefer the rank that served the session last: 1, or 0 above the affinity limit."""
    sticky, limit = context.hints.sticky, context.affinity_limit
    if sticky is None:
        return None
    return [
        1.0 if tokens <= limit and rank.rank_id == sticky else 0.0
        for rank, tokens in zip(context.candidates, context.outstanding, strict=True)
    ]


def adapter(context: ScoringContext) -> list[float] | None:
    """Prefer ranks that hold the adapter, then its replicas: ``AdapterIndex.values``.

    0 above the affinity limit.
    """
    values, limit = context.hints.adapter, context.affinity_limit
    if values is None:
        return None
    return [
        values.get(rank.rank_id, 0.0) if tokens <= limit else 0.0
        for rank, tokens in zip(context.candidates, context.outstanding, strict=True)
    ]


def balance(context: ScoringContext) -> list[float]:
    """Prefer the group whose busiest rank would be least busy: lowest load / load with the request.

    A step of an expert-parallel group takes as long as its slowest rank, so a request on any other
    rank does not slow the group down.
    """
    own = max(context.request.tokens, 1)
    after = [
        most if most > (mine := tokens + own) else mine
        for most, tokens in zip(context.busiest, context.outstanding, strict=True)
    ]
    least = min(after)
    return [least / tokens for tokens in after]


SCORERS: dict[str, Scorer] = {
    "load": load,
    "kv_room": kv_room,
    "prefix": prefix,
    "session": session,
    "balance": balance,
    "adapter": adapter,
}
"""Scorers, keyed by the name of their weight in ``routing.weights``."""

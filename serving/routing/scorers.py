"""Scorers: how well each candidate suits, from 0 to 1. Pure functions of one scene.

A scorer with nothing to say (no session, no prefix that matches) returns none, which counts as 0
for all. deploy/docs/routing.md has the formulas.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import nlargest

from serving.routing.decision import Demand, RankKey
from serving.routing.snapshot import FleetSnapshot, RankSnapshot
from serving.settings import RoutingSettings

_BEST = 8
"""Most ranks of whose caches more is made than of others': a common beginning is everywhere."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What routing's memory says about one request."""

    matched: Mapping[RankKey, int] = field(default_factory=dict)
    """Prompt tokens in each rank's cache; ranks without any are not in it."""
    guessed: Collection[RankKey] = ()
    """Ranks that do not tell what they cache: for them it is what this router sent there."""
    sticky: RankKey | None = None
    """Where the session was last."""

    def groups(self) -> set[str]:
        """Name the groups that speak for themselves: the session's, and the best matches'."""
        best: Iterable[RankKey] = self.matched
        if len(self.matched) > _BEST:
            best = nlargest(_BEST, self.matched, key=self.matched.__getitem__)
        found = {key[0] for key in best}
        if self.sticky is not None:
            found.add(self.sticky[0])
        return found


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that scorers look at. Lists are in the order of the candidates.

    One pass over hundreds of ranks costs as much as all the rest, hence lists and no calls a rank.
    """

    candidates: list[RankSnapshot]
    demand: Demand
    settings: RoutingSettings
    evidence: Evidence
    outstanding: list[int]
    """Outstanding tokens of each."""
    busiest: list[int]
    """Outstanding tokens of the busiest rank of each one's group."""
    affinity_limit: float
    """Outstanding tokens above which a rank's cache and sessions count for nothing."""

    @classmethod
    def of(
        cls,
        fleet: FleetSnapshot,
        candidates: list[RankSnapshot],
        demand: Demand,
        settings: RoutingSettings,
        evidence: Evidence,
    ) -> "Scene":
        """Look at the fleet once for all scorers."""
        outstanding = [rank.outstanding_tokens for rank in candidates]
        # Group ids are unique among living groups.
        busiest = {
            group.group_id: max([rank.outstanding_tokens for rank in group.ranks], default=0)
            for group in fleet.groups
        }
        mean = sum(outstanding) / len(outstanding)
        return cls(
            candidates,
            demand,
            settings,
            evidence,
            outstanding,
            [busiest[rank.group_id] for rank in candidates],
            mean * settings.session_load_bound + settings.affinity_slack,
        )


Scorer = Callable[[Scene], list[float] | None]
RunScorer = Callable[[str, Scorer, Scene], list[float] | None]
"""Calls a scorer by its name: where time is taken, so that scoring itself stays pure."""


def run_scorer(name: str, scorer: Scorer, scene: Scene) -> list[float] | None:
    """Call it and take no time."""
    del name
    return scorer(scene)


def load(scene: Scene) -> list[float]:
    """Prefer the fewest outstanding tokens: (least + own) / (this + own)."""
    own = max(scene.demand.tokens, 1)
    best = min(scene.outstanding) + own
    return [best / (tokens + own) for tokens in scene.outstanding]


def kv_room(scene: Scene) -> list[float]:
    """Prefer the most free KV cache, as reported, all routers' requests counted: 1 - usage."""
    return [
        1.0 - used if 0.0 <= (used := rank.load.kv_usage) <= 1.0 else float(used < 0)
        for rank in scene.candidates
    ]


def prefix(scene: Scene) -> list[float] | None:
    """Prefer ranks whose cache holds the prompt's beginning: matched tokens / prompt tokens.

    Counts for less where the match is a guess, and for nothing past the affinity limit.
    """
    evidence, limit, prompt = scene.evidence, scene.affinity_limit, scene.demand.prompt_tokens
    if not evidence.matched or not prompt:
        return None
    trust = scene.settings.history_trust
    worth = {
        key: min(tokens / prompt, 1.0) * (trust if key in evidence.guessed else 1.0)
        for key, tokens in evidence.matched.items()
    }
    return [
        worth.get((rank.group_id, rank.epoch, rank.rank), 0.0) if tokens <= limit else 0.0
        for rank, tokens in zip(scene.candidates, scene.outstanding, strict=True)
    ]


def session(scene: Scene) -> list[float] | None:
    """Prefer the rank where the session was last: 1, or 0 past the affinity limit."""
    if scene.evidence.sticky is None:
        return None
    group_id, epoch, index = scene.evidence.sticky
    return [
        1.0
        if rank.rank == index
        and rank.group_id == group_id
        and rank.epoch == epoch
        and tokens <= scene.affinity_limit
        else 0.0
        for rank, tokens in zip(scene.candidates, scene.outstanding, strict=True)
    ]


def balance(scene: Scene) -> list[float]:
    """Prefer what leaves the group's busiest rank least busy: least / its load afterwards.

    A step of an expert-parallel group takes as long as its slowest rank, so work on a rank that
    is not the busiest costs the group nothing.
    """
    own = max(scene.demand.tokens, 1)
    after = [
        most if most > (mine := tokens + own) else mine
        for most, tokens in zip(scene.busiest, scene.outstanding, strict=True)
    ]
    least = min(after)
    return [least / tokens for tokens in after]


SCORERS: dict[str, Scorer] = {
    "load": load,
    "kv_room": kv_room,
    "prefix": prefix,
    "session": session,
    "balance": balance,
}
"""By the name of their weight in ``routing.weights``."""

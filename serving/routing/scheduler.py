"""Chooses the rank for a request: filter, score, take the best.

``decide`` is a pure function of a view of the fleet and of affinity hints, so tests and the
simulator run the same code on frozen snapshots. ``RankScheduler`` holds the state that the hints
are read from.
"""

import heapq
from collections import OrderedDict
from collections.abc import Sequence
from time import perf_counter

from serving.routing.adapter_index import AdapterIndex
from serving.routing.decision import (
    DecisionKind,
    NoCandidate,
    RoutingDecision,
    RoutingRequest,
    Scored,
)
from serving.routing.filters import survey, why_none
from serving.routing.prefix_index import PrefixIndex
from serving.routing.scorers import (
    SCORERS,
    AffinityHints,
    RunScorer,
    Scorer,
    ScoringContext,
    run_scorer,
)
from serving.routing.snapshot import RankId
from serving.routing.views import FleetView, RankView
from serving.settings import RoutingSettings
from serving.telemetry import metrics

EXPLAINED = 8
"""Maximum number of candidates in an explained decision, whose scores are sent in a header."""
_TIE = 1e-9
"""Totals that differ by less than this count as equal, because sums of floats are rounded."""

_DECISIONS = {kind: metrics.ROUTING_PICKS.labels(kind.value).inc for kind in DecisionKind}
_SCORER_SECONDS = {name: metrics.SCORER_SECONDS.labels(name).inc for name in SCORERS}

Scores = dict[str, Sequence[float]]


def decide(
    fleet: FleetView,
    request: RoutingRequest,
    settings: RoutingSettings,
    hints: AffinityHints,
    turn: int,
    run: RunScorer = run_scorer,
) -> RoutingDecision | NoCandidate:
    """Choose a rank.

    Args:
        fleet: The fleet, or a sample of it.
        request: The request's requirements.
        settings: Weights and limits.
        hints: State that the router remembers about the request.
        turn: Number of earlier decisions; rotates through ranks with equal totals, ordered by
            group id and rank.
        run: Runs a scorer.
    """
    found = survey(fleet, request, settings)
    candidates = found.candidates
    if not candidates:
        return why_none(fleet, request, found)
    context = ScoringContext.of(fleet, candidates, request, settings, hints)
    scores, totals = _score(context, run)
    best = max(totals) - _TIE
    equals = [index for index, total in enumerate(totals) if total >= best]
    index = equals[turn % len(equals)]
    chosen = candidates[index]
    kind = _kind(scores, index, len(candidates))
    matched = hints.matched.get(chosen.rank_id, 0)
    return RoutingDecision(
        chosen.rank_id,
        _words(kind, chosen, len(candidates), len(equals), matched),
        kind,
        matched,
        _explained(candidates, scores, totals, index) if request.explain else (),
        found.filtered,
    )


class Sessions:
    """Session affinity: maps session ids to the ranks that served them last.

    Bounded, and entries expire. Only a hash of each id is kept, because clients choose the ids.
    """

    def __init__(self, limit: int, ttl: float) -> None:
        """Start without sessions.

        Args:
            limit: Maximum number of sessions; the least recently used are dropped. 0 means no
                affinity.
            ttl: Time from a session's last request until it expires, seconds.
        """
        self._limit = limit
        self._ttl = ttl
        self._ranks: OrderedDict[int, tuple[RankId, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ranks)

    def get(self, session_id: str | None, now: float) -> RankId | None:
        """Return the rank that served the session last; None if it is new or expired."""
        if session_id is None:
            return None
        found = self._ranks.get(hash(session_id))
        if found is None or now - found[1] > self._ttl:
            return None
        return found[0]

    def put(self, session_id: str | None, rank_id: RankId, now: float) -> None:
        """Record that ``rank_id`` serves the session from now on."""
        if session_id is None or self._limit == 0:
            return
        key = hash(session_id)
        self._ranks[key] = (rank_id, now)
        self._ranks.move_to_end(key)
        while len(self._ranks) > self._limit or now - self._oldest() > self._ttl:
            self._ranks.popitem(last=False)

    def _oldest(self) -> float:
        return next(iter(self._ranks.values()))[1]


class RankScheduler:
    """Chooses ranks, and keeps the state for later decisions: prefixes, sessions, turn."""

    def __init__(
        self,
        settings: RoutingSettings,
        prefixes: PrefixIndex | None = None,
        adapters: AdapterIndex | None = None,
    ) -> None:
        """Start without sessions.

        Args:
            settings: Weights and limits.
            prefixes: Index of the ranks' caches, filled from reports; an empty index by default.
            adapters: Index of the ranks' LoRA adapters, filled likewise; default: an empty index.
        """
        self._settings = settings
        self._prefixes = prefixes if prefixes is not None else PrefixIndex()
        self._adapters = adapters if adapters is not None else AdapterIndex()
        self._sessions = Sessions(settings.sessions, settings.session_ttl)
        self._turn = 0

    def hints(self, request: RoutingRequest, now: float) -> AffinityHints:
        """Look up the state that the router remembers about a request.

        Args:
            request: The request's requirements.
            now: Seconds on a monotonic clock.
        """
        return AffinityHints(
            self._prefixes.matches(request.prompt),
            self._prefixes.guessing,
            self._sessions.get(request.session_id, now),
            None
            if request.adapter is None
            else self._adapters.values(request.adapter, self._settings.adapter_replicas),
        )

    def choose(
        self,
        fleet: FleetView,
        request: RoutingRequest,
        now: float,
        hints: AffinityHints | None = None,
    ) -> RoutingDecision | NoCandidate:
        """Choose a rank for a request that is about to be sent, and record the decision.

        Args:
            fleet: The fleet, or a sample of it.
            request: The request's requirements.
            now: Seconds on a monotonic clock.
            hints: The result of ``hints``. If None, they are looked up.
        """
        begun = perf_counter()
        if hints is None:
            hints = self.hints(request, now)
        decision = decide(fleet, request, self._settings, hints, self._turn, _timed)
        if isinstance(decision, RoutingDecision):
            self._remember(fleet, request, decision, now)
        metrics.ROUTING_SECONDS.observe(perf_counter() - begun)
        return decision

    def _remember(
        self, fleet: FleetView, request: RoutingRequest, decision: RoutingDecision, now: float
    ) -> None:
        self._turn += 1
        rank_id = decision.rank_id
        if request.adapter is not None:
            metrics.ADAPTER_REQUESTS.labels(
                "hit" if self._adapters.holds(rank_id, request.adapter) else "miss"
            ).inc()
        self._sessions.put(request.session_id, rank_id, now)
        _DECISIONS[decision.kind]()
        if rank_id not in self._prefixes.guessing:
            metrics.PREFIX_MATCHED_TOKENS.inc(decision.matched_tokens)
        if self._settings.history_trust:
            known = rank_id in self._prefixes.ranks
            size = 0 if known else _block_size(fleet, rank_id)
            self._prefixes.guess(rank_id, request.prompt, size)


def _timed(name: str, scorer: Scorer, context: ScoringContext) -> list[float] | None:
    begun = perf_counter()
    scores = scorer(context)
    _SCORER_SECONDS[name](perf_counter() - begun)
    return scores


def _score(context: ScoringContext, run: RunScorer) -> tuple[Scores, list[float]]:
    weights = context.settings.weights
    scores: Scores = {}
    totals = [0.0] * len(context.candidates)
    for name, scorer in SCORERS.items():
        weight: float = getattr(weights, name)
        if weight and (values := run(name, scorer, context)) is not None:
            scores[name] = values
            totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
    return scores, totals


def _kind(scores: Scores, index: int, candidates: int) -> DecisionKind:
    if candidates == 1:
        return DecisionKind.ONLY
    if "session" in scores and scores["session"][index]:
        return DecisionKind.SESSION
    if "adapter" in scores and scores["adapter"][index]:
        return DecisionKind.ADAPTER
    if "prefix" in scores and scores["prefix"][index]:
        return DecisionKind.PREFIX
    return DecisionKind.LOAD


def _words(kind: DecisionKind, chosen: RankView, candidates: int, equals: int, matched: int) -> str:
    tokens = chosen.outstanding_tokens
    why = {
        DecisionKind.ONLY: "the only rank that can run the request",
        DecisionKind.SESSION: f"served the session before, {tokens} outstanding tokens",
        DecisionKind.ADAPTER: f"holds the adapter or is to load it, {tokens} outstanding tokens",
        DecisionKind.PREFIX: f"{matched} prompt tokens cached, {tokens} outstanding tokens",
        DecisionKind.LOAD: f"least load, {tokens} outstanding tokens",
    }[kind]
    return f"{why}, out of {candidates} ranks" + (
        f", in rotation among {equals} equal ranks" if equals > 1 else ""
    )


def _explained(
    candidates: list[RankView], scores: Scores, totals: list[float], chosen: int
) -> tuple[Scored, ...]:
    def worth(index: int) -> tuple[float, bool]:
        return totals[index], index == chosen

    best = heapq.nlargest(EXPLAINED, range(len(candidates)), key=worth)
    # With many equal totals, the chosen candidate may be missing; the explanation must include it.
    if chosen not in best:
        best[-1] = chosen
    return tuple(
        Scored(
            candidates[index].rank_id,
            totals[index],
            {name: values[index] for name, values in scores.items()},
        )
        for index in best
    )


def _block_size(fleet: FleetView, rank_id: RankId) -> int:
    return next(
        (
            rank.kv_block_size
            for group in fleet.groups
            if group.group_id == rank_id.group_id
            for rank in group.ranks
            if rank.rank == rank_id.rank
        ),
        0,
    )

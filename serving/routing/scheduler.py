"""Filter, score, pick: which rank takes a request.

``decide`` is a pure function of a frozen snapshot and what is remembered, so that tests and the
simulator run the very same code; ``Chooser`` is the memory.
"""

import heapq
from collections.abc import Sequence
from time import perf_counter

from serving.routing.decision import Demand, NoPick, Pick, PickKind, Scored, key_of
from serving.routing.filters import survey, why_none
from serving.routing.prefix_index import PrefixIndex
from serving.routing.scorers import SCORERS, Evidence, RunScorer, Scene, Scorer, run_scorer
from serving.routing.sessions import Sessions
from serving.routing.snapshot import FleetSnapshot, RankSnapshot
from serving.settings import RoutingSettings
from serving.telemetry import metrics

EXPLAINED = 8
"""Most candidates whose scores a pick keeps: an explanation goes into a header."""
_TIE = 1e-9
"""Totals that differ by less are equal: sums of floats are."""

_PICKS = {kind: metrics.ROUTING_PICKS.labels(kind.value).inc for kind in PickKind}
_SCORER_SECONDS = {name: metrics.SCORER_SECONDS.labels(name).inc for name in SCORERS}

Scores = dict[str, Sequence[float]]


def decide(
    fleet: FleetSnapshot,
    demand: Demand,
    settings: RoutingSettings,
    evidence: Evidence,
    turn: int,
    run: RunScorer = run_scorer,
) -> Pick | NoPick:
    """Choose a rank.

    Args:
        fleet: the fleet now.
        demand: what the request needs.
        settings: weights and bounds.
        evidence: what is remembered about the request.
        turn: counts picks; equal ranks take turns by it, in the order of group id and rank.
        run: calls the scorers.

    """
    found = survey(fleet, demand, settings)
    candidates = found.candidates
    if not candidates:
        return why_none(fleet, demand, found)
    scene = Scene.of(fleet, candidates, demand, settings, evidence)
    scores, totals = _score(scene, run)
    best = max(totals) - _TIE
    equals = [index for index, total in enumerate(totals) if total >= best]
    index = equals[turn % len(equals)]
    chosen = candidates[index]
    kind = _kind(scores, index, len(candidates))
    matched = evidence.matched.get(key_of(chosen), 0)
    return Pick(
        chosen.group_id,
        chosen.epoch,
        chosen.rank,
        _words(kind, chosen, len(candidates), len(equals), matched),
        kind,
        matched,
        _explained(candidates, scores, totals, index) if demand.explain else (),
        found.filtered,
    )


class Chooser:
    """Decides, and remembers what later decisions need: prefixes, sessions, whose turn it is."""

    def __init__(self, settings: RoutingSettings, prefixes: PrefixIndex | None = None) -> None:
        """Remember nothing yet.

        Args:
            settings: weights and bounds.
            prefixes: what ranks tell of their caches; whoever listens to them fills it.

        """
        self._settings = settings
        self._prefixes = prefixes if prefixes is not None else PrefixIndex()
        self._sessions = Sessions(settings.sessions, settings.session_ttl)
        self._turn = 0

    def evidence(self, demand: Demand, now: float) -> Evidence:
        """Return what is remembered about a request.

        Args:
            demand: what the request needs.
            now: seconds on a monotonic clock.

        """
        return Evidence(
            self._prefixes.matches(demand.prompt),
            self._prefixes.guessing,
            self._sessions.get(demand.session_id, now),
        )

    def choose(
        self, fleet: FleetSnapshot, demand: Demand, now: float, evidence: Evidence | None = None
    ) -> Pick | NoPick:
        """Choose a rank for a request that is about to be sent, and remember the choice.

        Args:
            fleet: the fleet now, or a part of it.
            demand: what the request needs.
            now: seconds on a monotonic clock.
            evidence: what is remembered about the request, if it was looked up already.

        """
        begun = perf_counter()
        if evidence is None:
            evidence = self.evidence(demand, now)
        decision = decide(fleet, demand, self._settings, evidence, self._turn, _timed)
        if isinstance(decision, Pick):
            self._remember(fleet, demand, decision, now)
        metrics.ROUTING_SECONDS.observe(perf_counter() - begun)
        return decision

    def _remember(self, fleet: FleetSnapshot, demand: Demand, pick: Pick, now: float) -> None:
        self._turn += 1
        key = (pick.group_id, pick.epoch, pick.rank)
        self._sessions.put(demand.session_id, key, now)
        _PICKS[pick.kind]()
        if key not in self._prefixes.guessing:
            metrics.PREFIX_MATCHED_TOKENS.inc(pick.matched_tokens)
        if self._settings.history_trust:
            self._prefixes.guess(key, demand.prompt, _block_size(fleet, pick))


def _timed(name: str, scorer: Scorer, scene: Scene) -> list[float] | None:
    begun = perf_counter()
    scores = scorer(scene)
    _SCORER_SECONDS[name](perf_counter() - begun)
    return scores


def _score(scene: Scene, run: RunScorer) -> tuple[Scores, list[float]]:
    weights = scene.settings.weights
    scores: Scores = {}
    totals = [0.0] * len(scene.candidates)
    for name, scorer in SCORERS.items():
        weight: float = getattr(weights, name)
        if weight and (values := run(name, scorer, scene)) is not None:
            scores[name] = values
            totals = [total + weight * value for total, value in zip(totals, values, strict=True)]
    return scores, totals


def _kind(scores: Scores, index: int, candidates: int) -> PickKind:
    if candidates == 1:
        return PickKind.ONLY
    if "session" in scores and scores["session"][index]:
        return PickKind.SESSION
    if "prefix" in scores and scores["prefix"][index]:
        return PickKind.PREFIX
    return PickKind.LOAD


def _words(kind: PickKind, chosen: RankSnapshot, candidates: int, equals: int, matched: int) -> str:
    tokens = chosen.outstanding_tokens
    why = {
        PickKind.ONLY: "the only rank that can take it",
        PickKind.SESSION: f"its session is here, {tokens} outstanding tokens",
        PickKind.PREFIX: f"{matched} prompt tokens cached, {tokens} outstanding tokens",
        PickKind.LOAD: f"least load, {tokens} outstanding tokens",
    }[kind]
    return f"{why}, of {candidates} ranks" + (f", turn among {equals}" if equals > 1 else "")


def _explained(
    candidates: list[RankSnapshot], scores: Scores, totals: list[float], chosen: int
) -> tuple[Scored, ...]:
    def worth(index: int) -> tuple[float, bool]:
        return totals[index], index == chosen

    best = heapq.nlargest(EXPLAINED, range(len(candidates)), key=worth)
    # Among many equals it may be missing, and it is what the explanation is about.
    if chosen not in best:
        best[-1] = chosen
    return tuple(
        Scored(
            key_of(candidates[index]),
            totals[index],
            {name: values[index] for name, values in scores.items()},
        )
        for index in best
    )


def _block_size(fleet: FleetSnapshot, pick: Pick) -> int:
    return next(
        (
            rank.kv_block_size
            for group in fleet.groups
            if group.group_id == pick.group_id
            for rank in group.ranks
            if rank.rank == pick.rank
        ),
        0,
    )

"""The decision: votes, windows and limits put together. Pure.

    rules vote -> the largest -> windows (up: least of the recent, down: most of the recent)
               -> parked requests, at once -> one step -> limits

``decide`` takes everything that it depends on, time included; the loop, ``explain``, replay and
the simulation run this very function.
"""

from dataclasses import replace

from serving.autoscaler.decision import Decision, PolicyState, Stance, Vote
from serving.autoscaler.limits import Limits, charge, limits_at, step_limited
from serving.autoscaler.rules import RULES, Facts, facts_of, parked, ready_groups
from serving.autoscaler.snapshot import Observation, Signal
from serving.settings import AutoscalerSettings

_LEARNING = 0.3
"""Weight of the newest look when a group's capacity is learnt."""


def decide(
    seen: Observation, state: PolicyState, now: float, settings: AutoscalerSettings, gpus: float
) -> tuple[Decision, PolicyState]:
    """Return how many groups there should be, with every rule's vote, and the next state.

    Args:
        seen: one look at everything.
        state: what the decision before returned.
        now: seconds since the Unix epoch, not before that of the decision before.
        settings: the group ``autoscaler``.
        gpus: GPUs of one group, for the cost cap.
    """
    current = seen.target
    state = charge(state, current, gpus, now)
    state = _timed(seen, state, now, settings)
    facts = facts_of(seen, state, now, settings)
    votes = tuple(rule(facts) for rule in RULES)
    waiting = parked(facts)
    said = [vote for vote in votes if vote.stance is not Stance.ABSTAIN]
    blind = not any(vote.stance is Stance.VOTE for vote in said)
    best = max(said, key=lambda vote: vote.groups, default=None)
    wanted = current if best is None or blind else best.groups
    state = _remember(state, now, wanted, current, settings)
    settled, reason = _settle(state, now, current, wanted, best, settings, blind=blind)
    if waiting.stance is Stance.VOTE and settled < waiting.groups:
        settled, reason = waiting.groups, f"{waiting.rule}: {waiting.reason}"
    stepped = step_limited(current, settled, settings)
    limits = limits_at(state, now, gpus, settings)
    target, reason = _bounded(current, stepped, limits, reason)
    if stepped != settled and target == stepped:
        reason += f" (one step towards {settled})"
    decision = Decision(now, current, target, reason, (*votes, waiting), blind)
    return decision, _learn(facts, state)


def _settle(
    state: PolicyState,
    now: float,
    current: int,
    wanted: int,
    best: Vote | None,
    settings: AutoscalerSettings,
    *,
    blind: bool,
) -> tuple[int, str]:
    """Apply the windows: more only if wanted all along, fewer likewise."""
    if blind or best is None:
        return current, "hold: no fresh data"
    word = f"{best.rule}: {best.reason}"
    recent = (groups for at, groups in state.wanted if at > now - settings.up_window)
    up = min((wanted, *recent))
    down = max(groups for at, groups in state.wanted if at >= now - settings.down_window)
    if up > current:
        return up, word
    if down < current:
        return down, word
    if wanted > current:
        return current, f"{word} (more are wanted, but not for {settings.up_window:g} s)"
    if wanted < current:
        return current, f"{word} (fewer are enough, but not for {settings.down_window:g} s)"
    return current, word


def _bounded(current: int, stepped: int, limits: Limits, reason: str) -> tuple[int, str]:
    if stepped < limits.least:
        held = current == limits.least
        return limits.least, f"{limits.least_because}{f'; {reason}' if held else ''}"
    if stepped > limits.most:
        return limits.most, f"{limits.most_because}; {reason}"
    return stepped, reason


def _timed(
    seen: Observation, state: PolicyState, now: float, settings: AutoscalerSettings
) -> PolicyState:
    """Note since when the fleet is idle, groups are missing, and when it last woke."""
    ready = ready_groups(seen, settings)
    missing = ready is not None and ready < seen.target
    # While some become ready the others are on their way too: a long ramp-up loses none.
    grew = ready is not None and state.ready is not None and ready > state.ready
    begun = now if grew or state.warming_since is None else state.warming_since
    warming = begun if missing else None
    asleep = state.asleep if ready is None else ready == 0
    woke_at = now if state.asleep and not asleep else state.woke_at
    idle = _idle(seen, settings)
    since = (state.idle_since if state.idle_since is not None else now) if idle else None
    return replace(
        state,
        idle_since=since,
        ready=state.ready if ready is None else ready,
        warming_since=warming,
        asleep=asleep,
        woke_at=woke_at,
    )


def _idle(seen: Observation, settings: AutoscalerSettings) -> bool:
    if seen.fleet is not None and seen.fleet.parked:
        return False
    for signal in (Signal.INFLIGHT, Signal.REQUEST_RATE):
        reading = seen.reading(signal)
        if not reading.fresh(settings.max_age, settings.max_gap) or reading.value != 0:
            return False
    return True


def _remember(
    state: PolicyState, now: float, wanted: int, current: int, settings: AutoscalerSettings
) -> PolicyState:
    """Keep what was wanted over the longer window.

    The first time ``current`` counts as wanted: after a restart fewer groups need a whole
    window, as they do after blindness, when ``wanted`` is ``current``.
    """
    keep = now - max(settings.up_window, settings.down_window)
    old = state.wanted or ((now, current),)
    return replace(state, wanted=(*(item for item in old if item[0] >= keep), (now, wanted)))


def _learn(facts: Facts, state: PolicyState) -> PolicyState:
    """Take the rate of a group while requests queue, and none warms, for its capacity."""
    needed = (Signal.TOKEN_RATE, Signal.QUEUE_REQUESTS)
    if not facts.ready or facts.warming or not all(facts.usable(signal) for signal in needed):
        return state
    if facts.value(Signal.QUEUE_REQUESTS) < 1 or facts.value(Signal.TOKEN_RATE) <= 0:
        return state
    now = facts.value(Signal.TOKEN_RATE) / facts.ready
    old = now if state.capacity is None else state.capacity
    return replace(state, capacity=old + _LEARNING * (now - old))

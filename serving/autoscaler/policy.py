"""Combines votes, windows and limits into a decision. Pure functions.

    votes of the rules -> largest vote -> windows (up: smallest recent vote, down: largest)
                       -> parked requests (immediate) -> one step -> limits

``decide`` depends only on its arguments, which include the time. The loop, ``explain``, replay and
the simulation all call it.
"""

from dataclasses import replace

from serving.autoscaler.decision import Decision, PolicyState, Vote, VoteKind
from serving.autoscaler.limits import Limits, charge, limit_step, limits_at
from serving.autoscaler.rules import RULES, PolicyInputs, parked, policy_inputs, ready_groups
from serving.autoscaler.signals import Observation, Signal
from serving.settings import AutoscalerSettings

_LEARNING = 0.3
"""Weight of the newest observation in the moving average of a group's capacity."""


def decide(
    observation: Observation,
    state: PolicyState,
    now: float,
    settings: AutoscalerSettings,
    gpus: float,
) -> tuple[Decision, PolicyState]:
    """Decide on the number of groups.

    Args:
        observation: The observation to decide on.
        state: The state returned by the previous decision.
        now: Unix time, seconds; must not be earlier than in the previous decision.
        settings: The settings group ``autoscaler``.
        gpus: GPUs of one group, for the cost cap.

    Returns:
        The decision with the vote of every rule, and the state for the next decision.
    """
    current = observation.target
    state = charge(state, current, gpus, now)
    state = _timed(observation, state, now, settings)
    inputs = policy_inputs(observation, state, now, settings, gpus)
    votes = tuple(rule(inputs) for rule in RULES)
    waiting = parked(inputs)
    voting = [vote for vote in votes if vote.kind is not VoteKind.ABSTAIN]
    blind = not any(vote.kind is VoteKind.VOTE for vote in voting)
    best = max(voting, key=lambda vote: vote.groups, default=None)
    wanted = current if best is None or blind else best.groups
    state = _remember(state, now, wanted, current, settings)
    settled, reason = _settle(state, now, current, wanted, best, settings, blind=blind)
    if waiting.kind is VoteKind.VOTE and settled < waiting.groups:
        settled, reason = waiting.groups, f"{waiting.rule}: {waiting.reason}"
    stepped = limit_step(current, settled, settings)
    limits = limits_at(state, now, gpus, settings)
    target, reason = _bounded(current, stepped, limits, reason)
    if stepped != settled and target == stepped:
        reason += f" (one step towards {settled})"
    decision = Decision(now, current, target, reason, (*votes, waiting), blind)
    return decision, _learn(inputs, state)


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
    """Apply the windows: scale only if all recent votes agree on the direction."""
    if blind or best is None:
        return current, "hold: no fresh data"
    text = f"{best.rule}: {best.reason}"
    recent = (groups for at, groups in state.wanted if at > now - settings.up_window)
    up = min((wanted, *recent))
    down = max(groups for at, groups in state.wanted if at >= now - settings.down_window)
    if up > current:
        return up, text
    if down < current:
        return down, text
    if wanted > current:
        return current, f"{text} (more groups needed, but for less than {settings.up_window:g} s)"
    if wanted < current:
        return (
            current,
            f"{text} (fewer groups suffice, but for less than {settings.down_window:g} s)",
        )
    return current, text


def _bounded(current: int, stepped: int, limits: Limits, reason: str) -> tuple[int, str]:
    if stepped < limits.least:
        held = current == limits.least
        return limits.least, f"{limits.least_because}{f'; {reason}' if held else ''}"
    if stepped > limits.most:
        return limits.most, f"{limits.most_because}; {reason}"
    return stepped, reason


def _timed(
    observation: Observation, state: PolicyState, now: float, settings: AutoscalerSettings
) -> PolicyState:
    """Update the times since when the fleet has been idle, awake, or short of groups."""
    ready = ready_groups(observation, settings)
    missing = ready is not None and ready < observation.target
    # Each group that becomes ready restarts the timer, so a long ramp-up loses no groups.
    grew = ready is not None and state.ready is not None and ready > state.ready
    begun = now if grew or state.warming_since is None else state.warming_since
    warming = begun if missing else None
    asleep = state.asleep if ready is None else ready == 0
    woke_at = now if state.asleep and not asleep else state.woke_at
    idle = _idle(observation, settings)
    since = (state.idle_since if state.idle_since is not None else now) if idle else None
    return replace(
        state,
        idle_since=since,
        ready=state.ready if ready is None else ready,
        warming_since=warming,
        asleep=asleep,
        woke_at=woke_at,
    )


def _idle(observation: Observation, settings: AutoscalerSettings) -> bool:
    if observation.fleet is not None and observation.fleet.parked:
        return False
    for signal in (Signal.INFLIGHT, Signal.REQUEST_RATE):
        reading = observation.reading(signal)
        if not reading.fresh(settings.max_age, settings.max_gap) or reading.value != 0:
            return False
    return True


def _remember(
    state: PolicyState, now: float, wanted: int, current: int, settings: AutoscalerSettings
) -> PolicyState:
    """Append the winning vote and drop votes that are older than the longer window.

    The first entry of a new state is ``current``, so that scaling down takes a whole window after a
    restart. The same applies after a period without data, during which ``wanted`` is ``current``.
    """
    keep = now - max(settings.up_window, settings.down_window)
    old = state.wanted or ((now, current),)
    return replace(state, wanted=(*(item for item in old if item[0] >= keep), (now, wanted)))


def _learn(inputs: PolicyInputs, state: PolicyState) -> PolicyState:
    """Update the learned capacity of a group: its token rate while requests are queued.

    Skipped while groups are warming up, because the rate is then shared with groups that are not
    ready.
    """
    needed = (Signal.TOKEN_RATE, Signal.QUEUE_REQUESTS)
    if not inputs.ready or inputs.warming or not all(inputs.usable(signal) for signal in needed):
        return state
    if inputs.value(Signal.QUEUE_REQUESTS) < 1 or inputs.value(Signal.TOKEN_RATE) <= 0:
        return state
    now = inputs.value(Signal.TOKEN_RATE) / inputs.ready
    old = now if state.capacity is None else state.capacity
    return replace(state, capacity=old + _LEARNING * (now - old))

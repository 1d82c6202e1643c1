"""The policy's result, the state carried to the next decision, and their text form."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from textwrap import wrap

from serving.autoscaler.signals import Observation, Signal


class VoteKind(StrEnum):
    """How a vote counts."""

    VOTE = "vote"
    """The number of groups that this rule needs; the largest vote wins."""
    STAY = "stay"
    """The rule's data is stale or missing, so at least the current number of groups is kept."""
    ABSTAIN = "abstain"
    """The rule does not apply."""


@dataclass(frozen=True, slots=True)
class Vote:
    """The vote of one rule."""

    rule: str
    kind: VoteKind
    groups: int
    """Number of groups; ignored for ABSTAIN."""
    reason: str


class Action(StrEnum):
    """Direction of a decision."""

    UP = "up"
    DOWN = "down"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Decision:
    """The number of groups to run, with the reason."""

    at: float
    """Unix time, seconds."""
    current: int
    target: int
    reason: str
    votes: tuple[Vote, ...]
    blind: bool
    """Whether no signal was usable, so only limits and parked requests determined the target."""

    @property
    def action(self) -> Action:
        """Direction from ``current`` to ``target``."""
        if self.target == self.current:
            return Action.HOLD
        return Action.UP if self.target > self.current else Action.DOWN


@dataclass(frozen=True, slots=True)
class PolicyState:
    """State carried from one decision to the next; the defaults are the initial state."""

    wanted: tuple[tuple[float, int], ...] = ()
    """(time, groups) of the winning votes, over the longer of the two windows."""
    idle_since: float | None = None
    """Unix time since which the fleet has had no requests; None while it has or may have
    requests."""
    ready: int | None = None
    """Number of ready groups at the last observation that included it."""
    warming_since: float | None = None
    """Unix time since which groups have been missing without any becoming ready."""
    asleep: bool = False
    """Whether no group was ready at the last observation that included the number of ready
    groups."""
    woke_at: float | None = None
    """Unix time at which the first group became ready after a time without ready groups."""
    capacity: float | None = None
    """Throughput of one group, tokens per second, learned while requests are queued."""
    spent_day: int = 0
    """The day that ``spent`` belongs to, as days since the Unix epoch."""
    spent: float = 0.0
    """Number of GPU-hours used on that day."""
    spent_at: float | None = None
    """Unix time up to which ``spent`` is charged."""


# -- as text ----------------------------------------------------------------------------------


def explain(
    decision: Decision, observation: Observation, problem: str = "", notices: Sequence[str] = ()
) -> str:
    """Format notices, signals, votes and the outcome for an operator.

    Args:
        decision: The decision to explain.
        observation: The observation that the decision is based on.
        problem: Why Prometheus is unavailable; empty if it responded.
        notices: Problems that an operator should fix.
    """
    lines = [*notice_lines(notices), "signals"]
    if problem:
        lines.append(f"  {problem}")
    for signal in Signal:
        reading = observation.signals.get(signal)
        if reading is None:
            lines.append(f"  {signal:<24} missing")
            continue
        value = "none" if reading.value is None else f"{reading.value:.4g}"
        lines.append(
            f"  {signal:<24} {value:>10}   age {reading.age:.1f} s, gaps {reading.gap:.0%}"
        )
    if observation.fleet is None:
        lines.append("  routers                  no response")
    else:
        lines.append(
            f"  routers                  {observation.fleet.ready} groups ready, "
            f"{observation.fleet.parked} requests parked"
        )
    lines.append("votes")
    for vote in decision.votes:
        groups = "-" if vote.kind is VoteKind.ABSTAIN else str(vote.groups)
        lines.append(f"  {vote.rule:<14} {vote.kind:<8} {groups:>4}   {vote.reason}")
    lines.append(f"decision  {decision.current} -> {decision.target} groups: {decision.reason}")
    return "\n".join(lines)


def notice_lines(notices: Sequence[str]) -> list[str]:
    """Return the notices as wrapped lines under a heading; empty if there are no notices."""
    lines = ["notices"] if notices else []
    for text in notices:
        lines += wrap(text, 100, initial_indent="  - ", subsequent_indent="    ")
    return lines


HEADER = f"{'time (UTC)':<10} {'groups':<9} {'ready':>5} {'parked':>6} {'tok/s':>8}  reason"


def row(decision: Decision, observation: Observation) -> str:
    """Return one table row under ``HEADER``."""
    at = datetime.fromtimestamp(decision.at, UTC).strftime("%H:%M:%S")
    sign = {Action.UP: "+", Action.DOWN: "-", Action.HOLD: " "}[decision.action]
    fleet = observation.fleet
    rate = observation.reading(Signal.TOKEN_RATE).value
    return (
        f"{at:<10} {f'{decision.current} -> {decision.target}':<7}{sign}  "
        f"{'?' if fleet is None else fleet.ready:>5} {'?' if fleet is None else fleet.parked:>6} "
        f"{'?' if rate is None else f'{rate:.0f}':>8}  {decision.reason}"
    )

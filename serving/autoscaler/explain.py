"""Decisions as text for people. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from textwrap import wrap

from serving.autoscaler.decision import Action, Decision, Stance
from serving.autoscaler.snapshot import Observation, Signal


def explain(
    decision: Decision, seen: Observation, problem: str = "", notices: Sequence[str] = ()
) -> str:
    """Return what an operator should change, the signals, each rule's vote and the outcome."""
    lines = [*notice_lines(notices), "signals"]
    if problem:
        lines.append(f"  {problem}")
    for signal in Signal:
        reading = seen.signals.get(signal)
        if reading is None:
            lines.append(f"  {signal:<24} missing")
            continue
        value = "none" if reading.value is None else f"{reading.value:.4g}"
        lines.append(
            f"  {signal:<24} {value:>10}   age {reading.age:.1f} s, gaps {reading.gap:.0%}"
        )
    if seen.fleet is None:
        lines.append("  routers                  do not answer")
    else:
        lines.append(
            f"  routers                  {seen.fleet.ready} groups ready, "
            f"{seen.fleet.parked} requests parked"
        )
    lines.append("votes")
    for vote in decision.votes:
        groups = "-" if vote.stance is Stance.ABSTAIN else str(vote.groups)
        lines.append(f"  {vote.rule:<14} {vote.stance:<8} {groups:>4}   {vote.reason}")
    lines.append(f"decision  {decision.current} -> {decision.target} groups: {decision.reason}")
    return "\n".join(lines)


def notice_lines(notices: Sequence[str]) -> list[str]:
    """Return the notices under their heading, wrapped; nothing if there are none."""
    lines = ["notices"] if notices else []
    for text in notices:
        lines += wrap(text, 100, initial_indent="  - ", subsequent_indent="    ")
    return lines


HEADER = f"{'time (UTC)':<10} {'groups':<9} {'ready':>5} {'parked':>6} {'tok/s':>8}  reason"


def row(decision: Decision, seen: Observation) -> str:
    """Return one line of a table under ``HEADER``."""
    at = datetime.fromtimestamp(decision.at, UTC).strftime("%H:%M:%S")
    sign = {Action.UP: "+", Action.DOWN: "-", Action.HOLD: " "}[decision.action]
    fleet = seen.fleet
    rate = seen.reading(Signal.TOKEN_RATE).value
    return (
        f"{at:<10} {f'{decision.current} -> {decision.target}':<7}{sign}  "
        f"{'?' if fleet is None else fleet.ready:>5} {'?' if fleet is None else fleet.parked:>6} "
        f"{'?' if rate is None else f'{rate:.0f}':>8}  {decision.reason}"
    )

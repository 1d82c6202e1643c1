"""Validators of a history. Each returns violations as texts; an empty list means none."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.faults.answers import matches_reference
from tests.faults.history import Ended, Event, History, Output, Ran, Submitted
from tests.faults.traffic import Spec

_EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits for a history."""

    must_complete: bool = True
    """Whether no request may be lost to a fault, unless it lost fleet.max_resumes groups."""
    max_resumes: int = 3
    suspect_losses: int = 2
    """Groups lost just after starting a request before it is rejected as poison."""
    suspects: bool = True
    """Whether requests are suspected as poison at all (fleet.suspect_tokens)."""
    blamed: int = 0
    """Maximum number of innocent requests rejected as poison by coincidence."""
    abort_seconds: float = 1.0
    """Maximum time from a request's end to its end on every live engine, seconds."""
    request_timeout: float = 120.0


def violations(history: History, rules: Rules) -> list[str]:
    """Return all violations in the history."""
    found = [f"leak: {leftover}" for leftover in history.leftovers]
    events = history.by_request()
    for name, spec in history.specs.items():
        for judge in JUDGES:
            found.extend(f"{name}: {what}" for what in judge(spec, events[name], rules))
    refused = [
        name
        for name, spec in history.specs.items()
        if not spec.poison and (end := _ended(events[name])) and end.how == "POISON_REQUEST"
    ]
    if len(refused) > rules.blamed:
        found.append(f"{', '.join(refused)} rejected as poison; at most {rules.blamed} allowed")
    return found


def ends_once(spec: Spec, events: list[Event], rules: Rules) -> Iterator[str]:
    """Every request that was sent ends exactly once, and nothing comes after it."""
    del spec, rules
    ends = [event for event in events if isinstance(event, Ended)]
    if len(ends) != 1:
        yield f"ended {len(ends)} times"
        return
    if not any(isinstance(event, Submitted) for event in events):
        yield "was never submitted"
    after = events[events.index(ends[0]) + 1 :]
    if any(isinstance(event, Output) for event in after):
        yield "received an output after its end"
    outputs = _outputs(events)
    last = [number for number, output in enumerate(outputs) if output.finished]
    if ends[0].how == "FINISHED" and last != [len(outputs) - 1]:
        yield f"finished, but the last outputs of {len(outputs)} are {last}"
    if ends[0].how not in {"FINISHED", "CANCELLED", "DIED"} and last:
        yield f"failed with {ends[0].how} after its last output"


def ends_as_allowed(spec: Spec, events: list[Event], rules: Rules) -> Iterator[str]:
    """Every request finishes, or ends for a reason that applies to it."""
    ended = _ended(events)
    if ended is None:
        return
    begun = sum(isinstance(event, Ran) and event.began for event in events)
    resumed = ended.resumes
    submitted = next(event.at for event in events if isinstance(event, Submitted))
    deadline = submitted + min(spec.deadline or rules.request_timeout, rules.request_timeout)
    reasons = {
        "FINISHED": not spec.poison,
        "CANCELLED": spec.cancel_after is not None or spec.cancel_at is not None,
        "DIED": True,
        "DEADLINE_EXCEEDED": ended.at >= deadline - _EPSILON,
        # The router cannot determine whether a lost group had started it.
        "POISON_REQUEST": resumed + 1 >= rules.suspect_losses,
        "GROUP_LOST": resumed >= rules.max_resumes or not rules.must_complete,
        "NOT_READY": not rules.must_complete,
        "ENGINE": not rules.must_complete,
        "OVERLOADED": begun == 0,
    }
    if not reasons.get(ended.how, False):
        yield f"ended with {ended.how} after {resumed} resumptions: {ended.message}"
    late = ended.at - deadline
    if late > rules.abort_seconds and not spec.slow:
        yield f"ended {late:.3f} s after its deadline"
    if ended.how == "OVERLOADED" and _outputs(events):
        yield "was rejected after its first output"
    if ended.how == "FINISHED" and begun == 0:
        yield "finished although no engine ran it"


def is_cleaned_up(spec: Spec, events: list[Event], rules: Rules) -> Iterator[str]:
    """No engine continues a request after its end, and none ends it twice."""
    del spec
    ended = _ended(events)
    begun: dict[tuple[str, str], float] = {}
    for event in events:
        if not isinstance(event, Ran):
            continue
        key = event.rank, event.attempt
        if event.began:
            begun[key] = event.at
            if ended is not None and event.at > ended.at + rules.abort_seconds:
                yield f"{event.rank} started it {event.at - ended.at:.3f} s after its end"
        elif begun.pop(key, None) is None:
            yield f"{event.rank} ended it without starting it"
        elif ended is not None and event.at > ended.at + rules.abort_seconds:
            yield f"{event.rank} ran it for {event.at - ended.at:.3f} s after its end"
    yield from (f"{rank} never ended it" for rank, _ in begun)


def is_run_in_turn(spec: Spec, events: list[Event], rules: Rules) -> Iterator[str]:
    """No rank gets an attempt twice, and there are no more attempts than the limits allow."""
    attempts = [
        event.attempt.rpartition("/")[2]
        for event in events
        if isinstance(event, Ran) and event.began
    ]
    if len(set(attempts)) != len(attempts):
        yield f"an attempt ran twice: {attempts}"
    ended = _ended(events)
    if ended is not None and len(attempts) > ended.resumes + 1:
        yield f"ran {len(attempts)} times, but its record has {ended.resumes} resumptions"
    # Without suspicion of poison, only fleet.max_resumes limits the attempts.
    limit = max(rules.suspect_losses, 0 if rules.suspects else rules.max_resumes + 1)
    if spec.poison and len(attempts) > limit:
        yield f"a poison request was started {len(attempts)} times"


Judge = Callable[[Spec, list[Event], Rules], Iterator[str]]
JUDGES: tuple[Judge, ...] = (
    ends_once,
    ends_as_allowed,
    lambda spec, events, rules: matches_reference(spec, events),
    is_cleaned_up,
    is_run_in_turn,
)


def _outputs(events: list[Event]) -> list[Output]:
    return [event for event in events if isinstance(event, Output)]


def _ended(events: list[Event]) -> Ended | None:
    return next((event for event in events if isinstance(event, Ended)), None)

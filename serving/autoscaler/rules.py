"""One function a rule: what it sees in, its vote out. Pure.

A rule whose data is stale or missing stays: so the fleet never shrinks on old data, and grows
only on the word of a rule whose data is fresh. The largest vote counts (``policy``).

    slo pressure   max(P90 TTFT / objective, P90 ITL / objective) over the groups that are ready
    queue wait     the same with the wait in the admission queue
    throughput     generated tokens per second, and queued tokens, against a group's capacity
    activity       0 groups after autoscaler.idle_timeout without work, else at least 1
"""

import math
from dataclasses import dataclass

from serving.autoscaler.decision import PolicyState, Stance, Vote
from serving.autoscaler.snapshot import Observation, Reading, Signal
from serving.settings import AutoscalerSettings

_WAKING = "the first group is ready since less than a window: waits of parked requests are in it"
_DOWN_SHARE = 5
"""A low pressure gives up one group in so many, at least one: a latency that is far below its
objective says little about how many groups could go, and large fleets must shrink too."""
_EPSILON = 1e-9
"""Keeps ``ceil`` from counting rounding errors as groups."""


@dataclass(frozen=True, slots=True)
class Facts:
    """An observation with what the policy has worked out of it."""

    seen: Observation
    settings: AutoscalerSettings
    ready: int | None
    """Groups that take work; None: nobody knows."""
    warming: int
    """Groups that are asked for and not ready, and still in their time for it: it begins anew
    whenever one becomes ready."""
    lost: int
    """Those whose time is over: they get no credit."""
    idle_for: float
    """Seconds without any work; 0 while there is some or it is not known."""
    capacity: float | None
    """Tokens per second of one group."""
    waking: bool
    """The window still holds the waits of requests that were parked while no group was ready:
    they say nothing about how many groups the load needs."""

    def usable(self, signal: Signal) -> bool:
        """Return whether the signal is there and neither old nor full of gaps."""
        reading = self.seen.reading(signal)
        return reading.value is not None and self._fresh(reading)

    def stale(self, signal: Signal) -> bool:
        """Return whether nothing may be concluded from the signal, not even from its absence."""
        return not self._fresh(self.seen.reading(signal))

    def value(self, signal: Signal) -> float:
        """Return a signal that is usable."""
        value = self.seen.reading(signal).value
        assert value is not None
        return value

    def _fresh(self, reading: Reading) -> bool:
        return reading.fresh(self.settings.max_age, self.settings.max_gap)


def facts_of(
    seen: Observation, state: PolicyState, now: float, settings: AutoscalerSettings
) -> Facts:
    """Work out what several rules need; ``state`` already belongs to ``now``."""
    ready = ready_groups(seen, settings)
    missing = 0 if ready is None else max(0, seen.target - ready)
    since = now if state.warming_since is None else state.warming_since
    in_time = now - since <= settings.warming_timeout
    return Facts(
        seen=seen,
        settings=settings,
        ready=ready,
        warming=missing if in_time else 0,
        lost=0 if in_time else missing,
        idle_for=0.0 if state.idle_since is None else now - state.idle_since,
        capacity=settings.group_tokens_per_second or state.capacity,
        waking=state.woke_at is not None and now - state.woke_at < settings.window,
    )


def ready_groups(seen: Observation, settings: AutoscalerSettings) -> int | None:
    """Return the groups that take work: as the routers say now, else as Prometheus has it."""
    if seen.fleet is not None:
        return seen.fleet.ready
    reading = seen.reading(Signal.READY_GROUPS)
    if reading.value is None or not reading.fresh(settings.max_age, settings.max_gap):
        return None
    return int(reading.value)


def slo_pressure(facts: Facts) -> Vote:
    """Vote by the worse of the two latencies, each over its objective."""
    rule = "slo pressure"
    settings = facts.settings
    if facts.waking:
        return _stay(facts, rule, _WAKING)
    if not facts.usable(Signal.REQUEST_RATE):
        return _stay(facts, rule, "the request rate is stale or missing")
    worst, what = 0.0, "no requests"
    for signal, objective, name in (
        (Signal.TTFT_P90, settings.ttft_slo, "TTFT"),
        (Signal.ITL_P90, settings.itl_slo, "ITL"),
    ):
        if facts.usable(signal):
            ratio = facts.value(signal) / objective
            if ratio >= worst:
                worst, what = ratio, f"P90 {name} {facts.value(signal):.3g} s of {objective:g} s"
        elif facts.stale(signal) or (
            signal is Signal.TTFT_P90 and facts.value(Signal.REQUEST_RATE) > 0
        ):
            return _stay(facts, rule, f"P90 {name} is stale or missing")
    return _by_ratio(facts, rule, worst, what)


def queue_wait(facts: Facts) -> Vote:
    """Vote by the wait in the admission queue over its objective."""
    rule = "queue wait"
    signal = Signal.QUEUE_WAIT_P90
    if facts.waking:
        return _stay(facts, rule, _WAKING)
    if not facts.usable(Signal.QUEUE_REQUESTS):
        return _stay(facts, rule, "the queue's length is stale or missing")
    if facts.usable(signal):
        wait = facts.value(signal)
    elif facts.stale(signal) or facts.value(Signal.QUEUE_REQUESTS) > 0:
        return _stay(facts, rule, "P90 queue wait is stale or missing")
    else:
        wait = 0.0
    objective = facts.settings.queue_wait_slo
    return _by_ratio(
        facts, rule, wait / objective, f"P90 queue wait {wait:.3g} s of {objective:g} s"
    )


def throughput(facts: Facts) -> Vote:
    """Vote by the tokens that are asked for over what a group can do.

    ``demand = token rate + queued tokens / backlog_horizon``. More groups are wanted past
    ``band_high`` of the capacity, fewer only below ``band_low``.
    """
    rule = "throughput"
    settings = facts.settings
    if not (facts.usable(Signal.TOKEN_RATE) and facts.usable(Signal.QUEUE_TOKENS)):
        return _stay(facts, rule, "token rate or queued tokens are stale or missing")
    if facts.capacity is None:
        return Vote(rule, Stance.ABSTAIN, 0, "the capacity of a group is not known yet")
    queued = facts.value(Signal.QUEUE_TOKENS) / settings.backlog_horizon
    demand = facts.value(Signal.TOKEN_RATE) + queued
    least = _ceil(demand / (facts.capacity * settings.band_high))
    most = _ceil(demand / (facts.capacity * settings.band_low))
    text = f"{demand:.4g} tokens/s for {facts.capacity:.4g} of a group"
    target = facts.seen.target
    if least + facts.lost > target:
        return Vote(rule, Stance.VOTE, least + facts.lost, _with_lost(facts, text))
    if most < target and not facts.warming:
        return Vote(rule, Stance.VOTE, most, text)
    return Vote(rule, Stance.VOTE, target, f"{text}: inside the band{_credit(facts)}")


def activity(facts: Facts) -> Vote:
    """Vote 1 while there is work, or was of late; 0 when the fleet may sleep."""
    rule = "activity"
    if facts.settings.min_groups > 0:
        return Vote(rule, Stance.ABSTAIN, 0, "min_groups keeps the fleet awake")
    if not (facts.usable(Signal.INFLIGHT) and facts.usable(Signal.REQUEST_RATE)):
        return _stay(facts, rule, "requests in flight are stale or missing")
    timeout = facts.settings.idle_timeout
    if facts.value(Signal.INFLIGHT) > 0 or facts.value(Signal.REQUEST_RATE) > 0:
        return Vote(rule, Stance.VOTE, 1, "there is work")
    if facts.idle_for >= timeout or facts.seen.target == 0:
        return Vote(rule, Stance.VOTE, 0, f"no work for {facts.idle_for:.0f} s")
    return Vote(rule, Stance.VOTE, 1, f"no work for {facts.idle_for:.0f} of {timeout:g} s")


def parked(facts: Facts) -> Vote:
    """Ask for a first group at once when requests wait for one. Needs no scrape."""
    rule = "parked"
    fleet = facts.seen.fleet
    if fleet is None:
        return Vote(rule, Stance.ABSTAIN, 0, "no router answers")
    if fleet.parked and not fleet.ready:
        return Vote(rule, Stance.VOTE, 1, f"{fleet.parked} requests are parked, no group is ready")
    return Vote(rule, Stance.ABSTAIN, 0, "no request is parked")


RULES = (slo_pressure, queue_wait, throughput, activity)
"""Those that need Prometheus; ``parked`` does not, and acts at once."""


def _by_ratio(facts: Facts, rule: str, ratio: float, what: str) -> Vote:
    """Vote by a pressure (1 = the objective) that falls as groups are added."""
    settings, ready, target = facts.settings, facts.ready, facts.seen.target
    if ready is None:
        return _stay(facts, rule, "nobody tells how many groups are ready")
    if ratio > settings.band_high and ready:
        wanted = _ceil(ready * min(ratio, settings.pressure_clamp) / settings.band_high)
        wanted = max(wanted, ready + 1) + facts.lost
        if wanted > target:
            return Vote(rule, Stance.VOTE, wanted, _with_lost(facts, what))
        return Vote(rule, Stance.VOTE, target, f"{what}: high{_credit(facts)}")
    # Fewer only as far as that would not bring the pressure over the band again.
    spare = ready - max(1, _ceil(ready * ratio / settings.band_high)) if ready > 1 else 1
    fewer = min(max(1, target // _DOWN_SHARE), spare)
    if ratio < settings.band_low and fewer > 0 and target and not facts.warming:
        return Vote(rule, Stance.VOTE, target - fewer, f"{what}: low")
    return Vote(rule, Stance.VOTE, target, f"{what}: no change{_credit(facts)}")


def _stay(facts: Facts, rule: str, reason: str) -> Vote:
    return Vote(rule, Stance.STAY, facts.seen.target, reason)


def _ceil(value: float) -> int:
    return max(0, math.ceil(value - _EPSILON))


def _credit(facts: Facts) -> str:
    return f", {facts.warming} warming" if facts.warming else ""


def _with_lost(facts: Facts, text: str) -> str:
    if not facts.lost:
        return text
    return f"{text}; {facts.lost} not ready after {facts.settings.warming_timeout:g} s"

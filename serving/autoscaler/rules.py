"""The rules of the policy: each maps an observation to a vote. Pure functions.

A rule with stale or missing data votes STAY: the fleet never shrinks on old data and grows only on
fresh data. The largest vote wins (``policy``).

    slo pressure   max(P90 TTFT / objective, P90 ITL / objective), over the ready groups
    queue wait     P90 wait in the admission queue / objective, over the ready groups
    throughput     generated and queued tokens, relative to the capacity of a group
    activity       0 groups after autoscaler.idle_timeout without requests, otherwise at least 1
    batch          the groups that autoscaler.batch permits while lines of batches run or wait
"""

import math
from dataclasses import dataclass

from serving.autoscaler.decision import PolicyState, Vote, VoteKind
from serving.autoscaler.schedule import floor_at
from serving.autoscaler.signals import Observation, Reading, Signal
from serving.settings import AutoscalerSettings

_WAKING = "the window still contains waits from before the first group was ready"
_DOWN_SHARE = 5
"""At low pressure, one in this many groups is removed, but at least one. A latency far below its
objective does not indicate how many groups are unnecessary, and large fleets must shrink
quickly."""
_EPSILON = 1e-9
"""Keeps ``ceil`` from turning rounding errors into groups."""


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """An observation and the values that the policy derives from it."""

    observation: Observation
    settings: AutoscalerSettings
    now: float
    """Unix time, seconds."""
    gpus: float
    """GPUs of one group."""
    ready: int | None
    """Number of ready groups. None if unknown."""
    warming: int
    """Number of groups requested but not ready, within warming_timeout; a group that becomes ready
    restarts the timeout."""
    lost: int
    """Number of groups not ready after warming_timeout, which are not expected to become ready."""
    idle_for: float
    """Time without requests, seconds; 0 while there are requests or if unknown."""
    capacity: float | None
    """Throughput of one group, tokens per second. None if not known yet."""
    waking: bool
    """Whether the window still contains latencies of requests that were parked while no group was
    ready, which do not indicate how many groups the load needs."""

    def usable(self, signal: Signal) -> bool:
        """Return whether the signal has a value and fresh data."""
        reading = self.observation.reading(signal)
        return reading.value is not None and self._fresh(reading)

    def stale(self, signal: Signal) -> bool:
        """Return whether the data is too old or too incomplete to rely on, even without a value."""
        return not self._fresh(self.observation.reading(signal))

    def value(self, signal: Signal) -> float:
        """Return the value of a usable signal."""
        value = self.observation.reading(signal).value
        assert value is not None
        return value

    def _fresh(self, reading: Reading) -> bool:
        return reading.fresh(self.settings.max_age, self.settings.max_gap)


def policy_inputs(
    observation: Observation,
    state: PolicyState,
    now: float,
    settings: AutoscalerSettings,
    gpus: float,
) -> PolicyInputs:
    """Derive the values that the rules share; ``state`` is already updated to ``now``."""
    ready = ready_groups(observation, settings)
    missing = 0 if ready is None else max(0, observation.target - ready)
    since = now if state.warming_since is None else state.warming_since
    in_time = now - since <= settings.warming_timeout
    return PolicyInputs(
        observation=observation,
        settings=settings,
        now=now,
        gpus=gpus,
        ready=ready,
        warming=missing if in_time else 0,
        lost=0 if in_time else missing,
        idle_for=0.0 if state.idle_since is None else now - state.idle_since,
        capacity=settings.group_tokens_per_second or state.capacity,
        waking=state.woke_at is not None and now - state.woke_at < settings.window,
    )


def ready_groups(observation: Observation, settings: AutoscalerSettings) -> int | None:
    """Return the number of ready groups, from the routers or Prometheus, or None if unknown."""
    if observation.fleet is not None:
        return observation.fleet.ready
    reading = observation.reading(Signal.READY_GROUPS)
    if reading.value is None or not reading.fresh(settings.max_age, settings.max_gap):
        return None
    return int(reading.value)


def slo_pressure(inputs: PolicyInputs) -> Vote:
    """Vote by the larger ratio of a latency to its objective."""
    rule = "slo pressure"
    settings = inputs.settings
    if inputs.waking:
        return _stay(inputs, rule, _WAKING)
    if not inputs.usable(Signal.REQUEST_RATE):
        return _stay(inputs, rule, "the request rate is stale or missing")
    worst, what = 0.0, "no requests"
    for signal, objective, name in (
        (Signal.TTFT_P90, settings.ttft_slo, "TTFT"),
        (Signal.ITL_P90, settings.itl_slo, "ITL"),
    ):
        if inputs.usable(signal):
            ratio = inputs.value(signal) / objective
            if ratio >= worst:
                worst, what = (
                    ratio,
                    f"P90 {name} {inputs.value(signal):.3g} s, objective {objective:g} s",
                )
        elif inputs.stale(signal) or (
            signal is Signal.TTFT_P90 and inputs.value(Signal.REQUEST_RATE) > 0
        ):
            return _stay(inputs, rule, f"P90 {name} is stale or missing")
    return _by_ratio(inputs, rule, worst, what)


def queue_wait(inputs: PolicyInputs) -> Vote:
    """Vote by the ratio of the admission queue's wait to its objective."""
    rule = "queue wait"
    signal = Signal.QUEUE_WAIT_P90
    if inputs.waking:
        return _stay(inputs, rule, _WAKING)
    if not inputs.usable(Signal.QUEUE_REQUESTS):
        return _stay(inputs, rule, "the queue length is stale or missing")
    if inputs.usable(signal):
        wait = inputs.value(signal)
    elif inputs.stale(signal) or inputs.value(Signal.QUEUE_REQUESTS) > 0:
        return _stay(inputs, rule, "P90 queue wait is stale or missing")
    else:
        wait = 0.0
    objective = inputs.settings.queue_wait_slo
    return _by_ratio(
        inputs, rule, wait / objective, f"P90 queue wait {wait:.3g} s, objective {objective:g} s"
    )


def throughput(inputs: PolicyInputs) -> Vote:
    """Vote by the demand for tokens relative to the capacity of a group.

    ``demand = token rate + queued tokens / backlog_horizon``, tokens per second. Votes for more
    groups above ``band_high`` of the capacity and for fewer below ``band_low``.
    """
    rule = "throughput"
    settings = inputs.settings
    if not (inputs.usable(Signal.TOKEN_RATE) and inputs.usable(Signal.QUEUE_TOKENS)):
        return _stay(inputs, rule, "token rate or queued tokens are stale or missing")
    if inputs.capacity is None:
        return Vote(rule, VoteKind.ABSTAIN, 0, "the capacity of a group is not known yet")
    queued = inputs.value(Signal.QUEUE_TOKENS) / settings.backlog_horizon
    demand = inputs.value(Signal.TOKEN_RATE) + queued
    least = _ceil(demand / (inputs.capacity * settings.band_high))
    most = _ceil(demand / (inputs.capacity * settings.band_low))
    text = f"{demand:.4g} tokens/s, capacity {inputs.capacity:.4g} per group"
    target = inputs.observation.target
    if least + inputs.lost > target:
        return Vote(rule, VoteKind.VOTE, least + inputs.lost, _with_lost(inputs, text))
    if most < target and not inputs.warming:
        return Vote(rule, VoteKind.VOTE, most, text)
    return Vote(rule, VoteKind.VOTE, target, f"{text}: within the band{_credit(inputs)}")


def activity(inputs: PolicyInputs) -> Vote:
    """Vote for one group while there are or recently were requests, otherwise for zero groups."""
    rule = "activity"
    if inputs.settings.min_groups > 0:
        return Vote(rule, VoteKind.ABSTAIN, 0, "min_groups is above 0")
    if not (inputs.usable(Signal.INFLIGHT) and inputs.usable(Signal.REQUEST_RATE)):
        return _stay(inputs, rule, "requests in flight are stale or missing")
    timeout = inputs.settings.idle_timeout
    if inputs.value(Signal.INFLIGHT) > 0 or inputs.value(Signal.REQUEST_RATE) > 0:
        return Vote(rule, VoteKind.VOTE, 1, "requests in flight or arriving")
    if inputs.idle_for >= timeout or inputs.observation.target == 0:
        return Vote(rule, VoteKind.VOTE, 0, f"idle for {inputs.idle_for:.0f} s")
    return Vote(rule, VoteKind.VOTE, 1, f"idle for {inputs.idle_for:.0f} s of {timeout:g} s")


def batch(inputs: PolicyInputs) -> Vote:
    """Vote for the groups that batches may hold or add now, while lines run or wait.

    Abstains in all other cases, so that batches change nothing by default. Stale data never holds
    or adds a group for a batch.
    """
    rule, settings = "batch", inputs.settings.batch
    if not settings.schedule:
        return Vote(rule, VoteKind.ABSTAIN, 0, "batch.schedule is empty")
    permitted, entry = floor_at(settings.schedule, inputs.now)
    if not permitted:
        return Vote(rule, VoteKind.ABSTAIN, 0, "outside batch.schedule")
    if not inputs.usable(Signal.BATCH_LINES):
        return Vote(rule, VoteKind.ABSTAIN, 0, "the number of lines is stale or missing")
    lines = inputs.value(Signal.BATCH_LINES)
    if not lines:
        return Vote(rule, VoteKind.ABSTAIN, 0, "no line runs or waits")
    because = f"{lines:g} lines, schedule {entry}"
    if settings.max_hourly_cost is not None:
        if not inputs.usable(Signal.GPU_HOUR_PRICE) or not inputs.value(Signal.GPU_HOUR_PRICE):
            return Vote(rule, VoteKind.ABSTAIN, 0, "the price of a GPU-hour is not known")
        each = inputs.gpus * inputs.value(Signal.GPU_HOUR_PRICE)
        if each > 0 and settings.max_hourly_cost / each < permitted:
            permitted = int(settings.max_hourly_cost / each + _EPSILON)
            because += f", {each:g} an hour for each group, max_hourly_cost"
            because += f" {settings.max_hourly_cost:g}"
    if not permitted:
        return Vote(rule, VoteKind.ABSTAIN, 0, because)
    return Vote(rule, VoteKind.VOTE, permitted, because)


def parked(inputs: PolicyInputs) -> Vote:
    """Vote for a first group as soon as requests are parked, without waiting for a scrape."""
    rule = "parked"
    fleet = inputs.observation.fleet
    if fleet is None:
        return Vote(rule, VoteKind.ABSTAIN, 0, "no router responds")
    if fleet.parked and not fleet.ready:
        return Vote(
            rule, VoteKind.VOTE, 1, f"{fleet.parked} requests are parked, no group is ready"
        )
    return Vote(rule, VoteKind.ABSTAIN, 0, "no request is parked")


RULES = (slo_pressure, queue_wait, throughput, activity, batch)
"""The rules on Prometheus data; ``parked`` does not use any and takes effect immediately."""


def _by_ratio(inputs: PolicyInputs, rule: str, ratio: float, what: str) -> Vote:
    """Vote by a ratio to an objective (1 means just met) that falls as groups are added."""
    settings, ready, target = inputs.settings, inputs.ready, inputs.observation.target
    if ready is None:
        return _stay(inputs, rule, "the number of ready groups is unknown")
    if ratio > settings.band_high and ready:
        wanted = _ceil(ready * min(ratio, settings.pressure_clamp) / settings.band_high)
        wanted = max(wanted, ready + 1) + inputs.lost
        if wanted > target:
            return Vote(rule, VoteKind.VOTE, wanted, _with_lost(inputs, what))
        return Vote(rule, VoteKind.VOTE, target, f"{what}: high{_credit(inputs)}")
    # Remove only so many groups that the ratio stays below the upper edge of the band.
    spare = ready - max(1, _ceil(ready * ratio / settings.band_high)) if ready > 1 else 1
    fewer = min(max(1, target // _DOWN_SHARE), spare)
    if ratio < settings.band_low and fewer > 0 and target and not inputs.warming:
        return Vote(rule, VoteKind.VOTE, target - fewer, f"{what}: low")
    return Vote(rule, VoteKind.VOTE, target, f"{what}: no change{_credit(inputs)}")


def _stay(inputs: PolicyInputs, rule: str, reason: str) -> Vote:
    return Vote(rule, VoteKind.STAY, inputs.observation.target, reason)


def _ceil(value: float) -> int:
    return max(0, math.ceil(value - _EPSILON))


def _credit(inputs: PolicyInputs) -> str:
    return f", {inputs.warming} warming" if inputs.warming else ""


def _with_lost(inputs: PolicyInputs, text: str) -> str:
    if not inputs.lost:
        return text
    return f"{text}; {inputs.lost} not ready after {inputs.settings.warming_timeout:g} s"

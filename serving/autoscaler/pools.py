"""Derives one observation per pool from the measurements of all models and pools. Pure functions.

Latencies, tokens and requests in flight are measured per pool. The admission queue belongs to the
model and is shared by its pools: each pool sees the queue's wait, and a share of the queued tokens
that corresponds to its share of the model's groups. Requests that wait while the model has no ready
group are attributed to one pool, which starts a group for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from serving.autoscaler.decision import PolicyState
from serving.autoscaler.signals import FleetCounts, Observation, Reading, Signal
from serving.settings import AutoscalerSettings

_QUEUE = (Signal.QUEUE_REQUESTS, Signal.QUEUE_TOKENS, Signal.QUEUE_WAIT_P90)


@dataclass(frozen=True, slots=True)
class ScaledPool:
    """One pool that the autoscaler scales."""

    model: str
    name: str
    settings: AutoscalerSettings
    """The settings group ``autoscaler``, with the values that the pool sets."""
    gpus: float
    """Number of GPUs of one group."""

    @property
    def key(self) -> str:
        """The pool as MODEL/POOL."""
        return f"{self.model}/{self.name}"

    @property
    def nodes(self) -> int:
        """Number of worker pods of one group."""
        return self.settings.kubernetes.workers_per_group


@dataclass(frozen=True, slots=True)
class FleetPools:
    """Current counts from the routers' ``/fleet`` pages, by pool and by model."""

    ready: Mapping[str, int]
    """Number of groups that accept requests, by pool (MODEL/POOL): the maximum over the routers."""
    waiting: Mapping[str, int]
    """Number of requests in the queue, by model: the sum over the routers."""
    parked: Mapping[str, int]
    """Number of queued requests at routers where no group of the model is ready, by model."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The readings of one cycle from Prometheus."""

    pools: Mapping[str, Mapping[Signal, Reading]] = field(default_factory=dict)
    """Latencies, rates, requests on ranks and ready groups, by pool (MODEL/POOL)."""
    models: Mapping[str, Mapping[Signal, Reading]] = field(default_factory=dict)
    """Signals of the admission queue, by model."""


def observe(
    pools: Sequence[ScaledPool],
    targets: Mapping[str, int],
    fleet: FleetPools | None,
    measured: Measured,
    states: Mapping[str, PolicyState],
    now: float,
) -> dict[str, Observation]:
    """Return the observation of each pool whose number of groups is known.

    Args:
        pools: All pools, in the order of the settings.
        targets: Groups currently requested, by pool; a pool whose number is unknown is missing.
        fleet: Counts from the routers. None if no router responded.
        measured: Readings from Prometheus; empty if it is unavailable.
        states: State of each pool before this cycle.
        now: Unix time, seconds.
    """
    found: dict[str, Observation] = {}
    for model in dict.fromkeys(pool.model for pool in pools):
        own = [pool for pool in pools if pool.model == model]
        chosen = None if fleet is None else waking_pool(own, targets, fleet, states, now)
        requested = sum(targets.get(pool.key, 0) for pool in own)
        queue = measured.models.get(model, {})
        for pool in own:
            target = targets.get(pool.key)
            if target is None:
                continue
            wakes = pool.key == chosen
            share = target / requested if requested else float(wakes)
            signals = dict(measured.pools.get(pool.key, {})) | _queue(queue, share)
            if Signal.BATCH_LINES in queue:
                signals[Signal.BATCH_LINES] = queue[Signal.BATCH_LINES]
            if Signal.INFLIGHT in signals and share:
                signals[Signal.INFLIGHT] = _sum(
                    signals[Signal.INFLIGHT], queue.get(Signal.QUEUE_REQUESTS)
                )
            counts = None
            if fleet is not None:
                parked = _waiting(own, fleet) if wakes else 0
                counts = FleetCounts(fleet.ready.get(pool.key, 0), parked)
            found[pool.key] = Observation(target, counts, signals, pool.key)
    return found


def waking_pool(
    pools: Sequence[ScaledPool],
    targets: Mapping[str, int],
    fleet: FleetPools,
    states: Mapping[str, PolicyState],
    now: float,
) -> str | None:
    """Return the pool that starts a group for the model's waiting requests; None if not needed.

    Without a ready group, this is a pool whose groups are starting already, otherwise the first
    pool of the settings. A pool without a ready group after its ``warming_timeout`` is skipped.
    While groups are ready, it is the first pool without groups, once all pools before it have
    ``max_groups`` groups.

    Args:
        pools: The pools of one model, in the order of the settings.
        targets: Groups currently requested, by pool.
        fleet: Counts from the routers.
        states: State of each pool before this cycle.
        now: Unix time, seconds.
    """
    if not _waiting(pools, fleet):
        return None
    known = [pool for pool in pools if pool.key in targets]
    if any(fleet.ready.get(pool.key, 0) for pool in known):
        for pool in known:
            if not targets[pool.key]:
                return pool.key
            if targets[pool.key] < pool.settings.max_groups:
                return None
        return None
    trusted = [pool for pool in known if not _late(pool, states.get(pool.key), now)] or known
    starting = [pool for pool in trusted if targets[pool.key]]
    return next((pool.key for pool in (*starting, *trusted)), None)


def _waiting(pools: Sequence[ScaledPool], fleet: FleetPools) -> int:
    """Return the number of waiting requests that the ready groups are not expected to accept."""
    model = pools[0].model
    ready = any(fleet.ready.get(pool.key, 0) for pool in pools)
    return (fleet.waiting if ready else fleet.parked).get(model, 0)


def _late(pool: ScaledPool, state: PolicyState | None, now: float) -> bool:
    since = None if state is None else state.warming_since
    return since is not None and now - since > pool.settings.warming_timeout


def _queue(queue: Mapping[Signal, Reading], share: float) -> dict[Signal, Reading]:
    """Return the part of the model's queue that one pool sees; empty if the pool has no share."""
    found = {signal: queue[signal] for signal in _QUEUE if signal in queue}
    for signal, reading in found.items():
        if not share:
            nothing = None if signal is Signal.QUEUE_WAIT_P90 else 0.0
            found[signal] = replace(reading, value=nothing)
        elif signal is Signal.QUEUE_TOKENS and reading.value is not None:
            found[signal] = replace(reading, value=reading.value * share)
    return found


def _sum(reading: Reading, other: Reading | None) -> Reading:
    if reading.value is None or other is None or other.value is None:
        return reading
    return replace(reading, value=reading.value + other.value)

"""The control loop of several pools: observe all, decide for each, apply the shared limits, act.

A pool whose number of groups is unknown stays unchanged; decisions for the others are made as
usual.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from typing_extensions import override

from serving.autoscaler.actuators.actuator import Actuator, ActuatorError
from serving.autoscaler.decision import Action, Decision, PolicyState, VoteKind
from serving.autoscaler.loop import ControlLoop, failed, record
from serving.autoscaler.policy import decide
from serving.autoscaler.pool_signals import PoolsSnapshot
from serving.autoscaler.pools import ScaledPool, observe
from serving.autoscaler.recording import save_states
from serving.autoscaler.sharing import apply_limits, shared_limits
from serving.autoscaler.signals import Observation
from serving.clock import Clock
from serving.settings import AutoscalerSettings
from serving.telemetry import autoscaler_metrics as metrics

_DAY = 86400.0

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class PoolsSignalSource(Protocol):
    """Source of signals; implemented by ``pool_signals.PoolSignalReader``."""

    async def read(self) -> PoolsSnapshot:
        """Return the current signals. Does not raise for an unavailable source."""
        ...


@dataclass(frozen=True, slots=True)
class PoolsCycle:
    """The result of one cycle; pools whose number of groups is unknown are missing."""

    decisions: Mapping[str, Decision]
    """Decision by pool, MODEL/POOL."""
    observations: Mapping[str, Observation]
    problem: str
    """Why Prometheus is unavailable; empty if it responded."""
    notices: tuple[str, ...] = ()
    """Problems that an operator should fix."""


def decide_pools(
    pools: Sequence[ScaledPool],
    observations: Mapping[str, Observation],
    states: Mapping[str, PolicyState],
    held: Mapping[str, int],
    now: float,
    settings: AutoscalerSettings,
) -> tuple[dict[str, Decision], dict[str, Decision], dict[str, PolicyState]]:
    """Decide on the number of groups of each pool; a pure function.

    Args:
        pools: All pools, in the order of the settings.
        observations: Observation by pool; no decision is made for a pool without one.
        states: State of each pool from the previous decision.
        held: Number of groups of the pools without a decision.
        now: Unix time, seconds.
        settings: The settings group ``autoscaler``, whose limits the pools share.

    Returns:
        The decision for each pool with the shared limits, the decision without them, and the states
        for the next decision.
    """
    states = dict(states)
    wanted: dict[str, Decision] = {}
    for pool in pools:
        observation = observations.get(pool.key)
        if observation is None:
            continue
        # The limit on GPU-hours per day applies to all pools together.
        own = pool.settings.model_copy(update={"gpu_hours_per_day": None})
        wanted[pool.key], states[pool.key] = decide(
            observation, states.get(pool.key, PolicyState()), now, own, pool.gpus
        )
    limits = shared_limits(settings, pools, spent_today(states, now))
    return apply_limits(wanted, pools, held, limits), wanted, states


def spent_today(states: Mapping[str, PolicyState], now: float) -> float:
    """Return the GPU-hours used by all pools since 0:00 UTC."""
    return sum(state.spent for state in states.values() if state.spent_day == int(now // _DAY))


class PoolsAutoscaler(ControlLoop[PoolsCycle]):
    """The autoscaler of several pools."""

    def __init__(
        self,
        pools: Sequence[ScaledPool],
        signals: PoolsSignalSource,
        actuators: Mapping[str, Actuator],
        settings: AutoscalerSettings,
        clock: Clock,
        *,
        states: Mapping[str, PolicyState] | None = None,
        dry_run: bool = False,
    ) -> None:
        """Decide from ``signals`` and act through ``actuators``.

        Args:
            pools: All pools, in the order of the settings.
            signals: Source of the signals of all pools.
            actuators: Reports and sets the number of groups, by pool.
            settings: The settings group ``autoscaler``, whose limits the pools share.
            clock: Wall clock for decisions and monotonic clock for the interval.
            states: States saved by an earlier process; the initial state by default.
            dry_run: Whether to decide without acting.
        """
        super().__init__(settings.interval, clock)
        self._pools = pools
        self._signals = signals
        self._actuators = actuators
        self._settings = settings
        self._states = dict(states or {})
        self._dry_run = dry_run
        self._last: dict[str, int] = {}
        """Last known number of groups of each pool; during a change, the larger of the two
        numbers."""
        self._acting: dict[str, asyncio.Task[None]] = {}
        """Change in progress of each pool."""

    @override
    def notices(self) -> tuple[str, ...]:
        """Return problems that an operator should fix, each with its pool, from the last cycle."""
        return tuple(
            f"pool {pool.key}: {text}"
            for pool in self._pools
            for text in (*_fixed(pool), *self._actuators[pool.key].notices())
        )

    @override
    async def run_once(self) -> PoolsCycle | None:
        """Run one cycle; return None if the number of groups is unknown for all pools."""
        targets = await self._targets()
        self._notice()
        if not targets:
            return None
        snapshot = await self._signals.read()
        if snapshot.problem:
            metrics.AUTOSCALER_FAILURES.labels("prometheus").inc()
        if snapshot.fleet is None:
            metrics.AUTOSCALER_FAILURES.labels("routers").inc()
        now = self._clock.time()
        observations = observe(
            self._pools, targets, snapshot.fleet, snapshot.measured, self._states, now
        )
        record(self._settings.record_file, now, observations.values())
        decisions, wanted, self._states = decide_pools(
            self._pools, observations, self._states, self._held(targets), now, self._settings
        )
        self._report(decisions, wanted, now)
        if not self._dry_run:
            await self._act(decisions)
        self._save()
        return PoolsCycle(decisions, observations, snapshot.problem, self.notices())

    async def close(self) -> None:
        """Stop the changes in progress; groups that are being drained stay drained."""
        for task in self._acting.values():
            task.cancel()
        await asyncio.gather(*self._acting.values(), return_exceptions=True)

    async def _targets(self) -> dict[str, int]:
        """Return the number of groups of each pool, except where it is unknown or changing."""

        async def one(pool: ScaledPool) -> int | None:
            try:
                return await self._actuators[pool.key].target()
            except ActuatorError as error:
                failed("target", ActuatorError(f"pool {pool.key}: {error}"))
                return None

        self._acting = {key: task for key, task in self._acting.items() if not task.done()}
        resting = [pool for pool in self._pools if pool.key not in self._acting]
        found = await asyncio.gather(*map(one, resting))
        targets = {
            pool.key: target
            for pool, target in zip(resting, found, strict=True)
            if target is not None
        }
        self._last |= targets
        return targets

    def _held(self, targets: Mapping[str, int]) -> dict[str, int]:
        """Return the number of groups to assume for each other pool in the shared limits."""
        return {
            pool.key: self._last.get(pool.key, pool.settings.max_groups)
            for pool in self._pools
            if pool.key not in targets
        }

    async def _act(self, decisions: Mapping[str, Decision]) -> None:
        """Scale all pools; wait at most one interval, because draining a group can take longer.

        No new decision is made for a pool until its change is complete.
        """
        for key, decision in decisions.items():
            if decision.action is not Action.HOLD:
                self._last[key] = max(decision.current, decision.target)
                self._acting[key] = asyncio.create_task(self._scale(key, decision.target))
        if self._acting:
            await asyncio.wait(self._acting.values(), timeout=self._settings.interval)

    async def _scale(self, key: str, groups: int) -> None:
        try:
            await self._actuators[key].scale(groups)
        except ActuatorError as error:
            failed("scale", ActuatorError(f"pool {key}: {error}"))
        except Exception:
            # A bug must not stop the process: the next cycle may succeed.
            metrics.AUTOSCALER_FAILURES.labels("scale").inc()
            log.exception("scaling failed", pool=key)

    def _report(
        self, decisions: Mapping[str, Decision], wanted: Mapping[str, Decision], now: float
    ) -> None:
        metrics.AUTOSCALER_TARGET.set(sum(each.target for each in decisions.values()))
        metrics.AUTOSCALER_CURRENT.set(sum(each.current for each in decisions.values()))
        metrics.AUTOSCALER_BLIND.set(any(each.blind for each in decisions.values()))
        metrics.AUTOSCALER_GPU_HOURS.set(spent_today(self._states, now))
        metrics.AUTOSCALER_POOL_VOTES.clear()
        for pool in self._pools:
            decision = decisions.get(pool.key)
            if decision is None:
                continue
            labels = (pool.model, pool.name)
            metrics.AUTOSCALER_DECISIONS.labels(str(decision.action)).inc()
            metrics.AUTOSCALER_POOL_TARGET.labels(*labels).set(decision.target)
            metrics.AUTOSCALER_POOL_CURRENT.labels(*labels).set(decision.current)
            metrics.AUTOSCALER_POOL_WANTED.labels(*labels).set(wanted[pool.key].target)
            for vote in decision.votes:
                if vote.kind is not VoteKind.ABSTAIN:
                    metrics.AUTOSCALER_POOL_VOTES.labels(*labels, vote.rule).set(vote.groups)
            emit = log.debug if decision.action is Action.HOLD else log.info
            emit(
                "decision",
                pool=pool.key,
                action=str(decision.action),
                current=decision.current,
                target=decision.target,
                reason=decision.reason,
                dry_run=self._dry_run,
            )

    def _save(self) -> None:
        if self._settings.state_file is None or self._dry_run:
            return
        try:
            save_states(Path(self._settings.state_file), self._states)
        except OSError as error:
            failed("state", error)


def _fixed(pool: ScaledPool) -> tuple[str, ...]:
    settings = pool.settings
    if settings.min_groups != settings.max_groups:
        return ()
    text = (
        f"min_groups and max_groups are both {settings.max_groups}: the number of groups never "
        "changes. Raise autoscaler.max_groups of the pool"
    )
    return (text,)

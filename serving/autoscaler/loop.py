"""The control loop: observe, decide, act, every ``autoscaler.interval`` seconds.

After any failure, the number of groups stays unchanged until the next cycle.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import structlog
from typing_extensions import override

from serving.autoscaler.actuators.actuator import Actuator, ActuatorError
from serving.autoscaler.decision import Action, Decision, PolicyState, VoteKind
from serving.autoscaler.policy import decide
from serving.autoscaler.prometheus import SignalSnapshot
from serving.autoscaler.recording import format_line, save_state
from serving.autoscaler.signals import Observation
from serving.clock import Clock
from serving.settings import AutoscalerSettings
from serving.telemetry import autoscaler_metrics as metrics

Result = TypeVar("Result")

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class SignalSource(Protocol):
    """Source of signals; implemented by ``prometheus.SignalReader``."""

    async def read(self) -> SignalSnapshot:
        """Return the current signals; an unavailable source raises no exception."""
        ...


@dataclass(frozen=True, slots=True)
class Cycle:
    """The result of one cycle of the loop."""

    decision: Decision
    observation: Observation
    problem: str
    """Why Prometheus is unavailable; empty if it responded."""
    notices: tuple[str, ...] = ()
    """Problems that an operator should fix."""


class ControlLoop(ABC, Generic[Result]):
    """Runs cycles at a fixed interval; subclasses define the cycle."""

    def __init__(self, interval: float, clock: Clock) -> None:
        """Run a cycle every ``interval`` seconds of ``clock``."""
        self._interval = interval
        self._clock = clock
        self._noticed: tuple[str, ...] = ()

    @abstractmethod
    def notices(self) -> tuple[str, ...]:
        """Return problems that an operator should fix, as found by the last cycle."""

    @abstractmethod
    async def run_once(self) -> Result | None:
        """Run one cycle; return None if nothing could be decided."""

    async def run(
        self,
        is_leader: Callable[[], bool],
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        on_cycle: Callable[[Result], object] | None = None,
    ) -> None:
        """Run cycles until cancelled, skipping those for which this process is not the leader.

        Args:
            is_leader: Called before each cycle.
            pause: Sleeps for the given number of seconds.
            on_cycle: Called with the result of each cycle.
        """
        while True:
            started = self._clock.monotonic()
            if is_leader():
                cycle = await self._guarded_cycle()
                if cycle is not None and on_cycle is not None:
                    on_cycle(cycle)
            elapsed = self._clock.monotonic() - started
            await pause(max(0.0, self._interval - elapsed))

    async def _guarded_cycle(self) -> Result | None:
        try:
            return await self.run_once()
        except Exception:
            # A bug must not stop the process: the next cycle may succeed.
            metrics.AUTOSCALER_FAILURES.labels("target").inc()
            log.exception("cycle failed: sizes unchanged")
            return None

    def _notice(self) -> None:
        """Log each notice once when it appears and once when it disappears."""
        now = self.notices()
        for text in now:
            if text not in self._noticed:
                log.warning("warning", text=text)
        for text in self._noticed:
            if text not in now:
                log.info("warning cleared", text=text)
        self._noticed = now


class Autoscaler(ControlLoop[Cycle]):
    """The autoscaler of one fleet."""

    def __init__(
        self,
        signals: SignalSource,
        actuator: Actuator,
        settings: AutoscalerSettings,
        clock: Clock,
        *,
        gpus: float,
        state: PolicyState | None = None,
        dry_run: bool = False,
    ) -> None:
        """Decide from ``signals`` and act through ``actuator``.

        Args:
            signals: Source of the signals.
            actuator: Reports and sets the number of groups.
            settings: The settings group ``autoscaler``.
            clock: Wall clock for decisions and monotonic clock for the interval.
            gpus: GPUs of one group, for the cost cap.
            state: State saved by an earlier process; the initial state by default.
            dry_run: Whether to decide without acting.
        """
        super().__init__(settings.interval, clock)
        self._signals = signals
        self._actuator = actuator
        self._settings = settings
        self._gpus = gpus
        self._state = state or PolicyState()
        self._dry_run = dry_run

    @override
    def notices(self) -> tuple[str, ...]:
        """Return problems that an operator should fix, as found by the last cycle."""
        settings = self._settings
        fixed = []
        if settings.min_groups == settings.max_groups:
            fixed.append(
                f"min_groups and max_groups are both {settings.max_groups}: the number of groups "
                "never changes. Raise autoscaler.max_groups (in the chart autoscaler.maxGroups), "
                "or turn the autoscaler off"
            )
        return (*fixed, *self._actuator.notices())

    @override
    async def run_once(self) -> Cycle | None:
        """Run one cycle; return None if the current number of groups is unknown."""
        try:
            target = await self._actuator.target()
        except ActuatorError as error:
            failed("target", error)
            self._notice()
            return None
        self._notice()
        snapshot = await self._signals.read()
        if snapshot.problem:
            metrics.AUTOSCALER_FAILURES.labels("prometheus").inc()
        if snapshot.fleet is None:
            metrics.AUTOSCALER_FAILURES.labels("routers").inc()
        observation = Observation(target, snapshot.fleet, snapshot.signals)
        now = self._clock.time()
        record(self._settings.record_file, now, [observation])
        decision, state = decide(observation, self._state, now, self._settings, self._gpus)
        self._state = state
        self._report(decision)
        if decision.action is not Action.HOLD and not self._dry_run:
            try:
                await self._actuator.scale(decision.target)
            except ActuatorError as error:
                failed("scale", error)
        self._save()
        return Cycle(decision, observation, snapshot.problem, self.notices())

    def _report(self, decision: Decision) -> None:
        metrics.AUTOSCALER_TARGET.set(decision.target)
        metrics.AUTOSCALER_CURRENT.set(decision.current)
        metrics.AUTOSCALER_BLIND.set(decision.blind)
        metrics.AUTOSCALER_DECISIONS.labels(str(decision.action)).inc()
        metrics.AUTOSCALER_GPU_HOURS.set(self._state.spent)
        metrics.AUTOSCALER_VOTES.clear()
        for vote in decision.votes:
            if vote.kind is not VoteKind.ABSTAIN:
                metrics.AUTOSCALER_VOTES.labels(vote.rule).set(vote.groups)
        emit = log.debug if decision.action is Action.HOLD else log.info
        emit(
            "decision",
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
            save_state(Path(self._settings.state_file), self._state)
        except OSError as error:
            failed("state", error)


def record(file: str | None, now: float, observations: Iterable[Observation]) -> None:
    """Append observations to a recording; a failure is logged, not raised.

    Args:
        file: The recording. None disables recording.
        now: Unix time, seconds.
        observations: One observation per pool.
    """
    if file is None:
        return
    try:
        with Path(file).open("a", encoding="utf-8") as out:
            out.writelines(f"{format_line(now, each)}\n" for each in observations)
    except OSError as error:
        failed("state", error)


def failed(stage: str, error: Exception) -> None:
    """Count and log the failure of one stage of a cycle."""
    metrics.AUTOSCALER_FAILURES.labels(stage).inc()
    log.warning("stage failed", stage=stage, error=str(error))

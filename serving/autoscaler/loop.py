"""The loop: look, decide, act, every few seconds. Whatever fails, the groups stay as they are."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from serving.autoscaler.actuators.actuator import Actuator, ActuatorError
from serving.autoscaler.decision import Action, Decision, PolicyState, Stance
from serving.autoscaler.policy import decide
from serving.autoscaler.recording import line_of, save_state
from serving.autoscaler.signals import Look
from serving.autoscaler.snapshot import Observation
from serving.clock import Clock
from serving.settings import AutoscalerSettings
from serving.telemetry import metrics

log: structlog.stdlib.BoundLogger = structlog.get_logger("serving.autoscaler")


class SignalSource(Protocol):
    """Looks at everything; ``signals.Signals`` is the real one."""

    async def look(self) -> Look:
        """Return every signal as it is now. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn of the loop came to."""

    decision: Decision
    seen: Observation
    problem: str
    """Why Prometheus gave nothing; empty when it did."""
    notices: tuple[str, ...] = ()
    """What an operator should change."""


class Autoscaler:
    """One fleet's autoscaler."""

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
        """Decide from ``signals``, act on ``actuator``; ``gpus`` is those of one group."""
        self._signals = signals
        self._actuator = actuator
        self._settings = settings
        self._clock = clock
        self._gpus = gpus
        self._state = state or PolicyState()
        self._dry_run = dry_run
        self._noticed: tuple[str, ...] = ()

    def notices(self) -> tuple[str, ...]:
        """Return what an operator should change, as far as the last turn saw it."""
        settings = self._settings
        fixed = []
        if settings.min_groups == settings.max_groups:
            fixed.append(
                f"min_groups and max_groups are both {settings.max_groups}: the number of groups "
                "never changes. Raise autoscaler.max_groups (in the chart autoscaler.maxGroups), "
                "or turn the autoscaler off"
            )
        return (*fixed, *self._actuator.notices())

    async def turn(self) -> Turn | None:
        """Look, decide and act once; None if nobody can say how many groups are asked for."""
        try:
            target = await self._actuator.target()
        except ActuatorError as error:
            _failed("target", error)
            self._notice()
            return None
        self._notice()
        look = await self._signals.look()
        if look.problem:
            metrics.AUTOSCALER_FAILURES.labels("prometheus").inc()
        if look.fleet is None:
            metrics.AUTOSCALER_FAILURES.labels("routers").inc()
        seen = Observation(target, look.fleet, look.signals)
        now = self._clock.time()
        self._record(now, seen)
        decision, state = decide(seen, self._state, now, self._settings, self._gpus)
        self._state = state
        self._tell(decision)
        if decision.action is not Action.HOLD and not self._dry_run:
            try:
                await self._actuator.scale(decision.target)
            except ActuatorError as error:
                _failed("scale", error)
        self._save()
        return Turn(decision, seen, look.problem, self.notices())

    async def run(
        self,
        leading: Callable[[], bool],
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        show: Callable[[Turn], object] | None = None,
    ) -> None:
        """Turn for ever, while ``leading`` says that this process is the one that decides.

        Args:
            leading: asked before each turn.
            pause: waits so many seconds.
            show: is told of each turn.
        """
        while True:
            begun = self._clock.monotonic()
            if leading():
                turn = await self._guarded_turn()
                if turn is not None and show is not None:
                    show(turn)
            took = self._clock.monotonic() - begun
            await pause(max(0.0, self._settings.interval - took))

    async def _guarded_turn(self) -> Turn | None:
        try:
            return await self.turn()
        except Exception:
            # A defect of ours must not end the process that would act on the next turn.
            metrics.AUTOSCALER_FAILURES.labels("target").inc()
            log.exception("held: a turn failed")
            return None

    def _notice(self) -> None:
        """Log what is new among the notices, and what is no more, once each."""
        now = self.notices()
        for text in now:
            if text not in self._noticed:
                log.warning("notice", text=text)
        for text in self._noticed:
            if text not in now:
                log.info("notice no longer holds", text=text)
        self._noticed = now

    def _tell(self, decision: Decision) -> None:
        metrics.AUTOSCALER_TARGET.set(decision.target)
        metrics.AUTOSCALER_CURRENT.set(decision.current)
        metrics.AUTOSCALER_BLIND.set(decision.blind)
        metrics.AUTOSCALER_DECISIONS.labels(str(decision.action)).inc()
        metrics.AUTOSCALER_GPU_HOURS.set(self._state.spent)
        metrics.AUTOSCALER_VOTES.clear()
        for vote in decision.votes:
            if vote.stance is not Stance.ABSTAIN:
                metrics.AUTOSCALER_VOTES.labels(vote.rule).set(vote.groups)
        say = log.debug if decision.action is Action.HOLD else log.info
        say(
            "decision",
            action=str(decision.action),
            current=decision.current,
            target=decision.target,
            reason=decision.reason,
            dry_run=self._dry_run,
        )

    def _record(self, now: float, seen: Observation) -> None:
        if self._settings.record_file is None:
            return
        try:
            with Path(self._settings.record_file).open("a", encoding="utf-8") as out:
                out.write(line_of(now, seen) + "\n")
        except OSError as error:
            _failed("state", error)

    def _save(self) -> None:
        if self._settings.state_file is None or self._dry_run:
            return
        try:
            save_state(Path(self._settings.state_file), self._state)
        except OSError as error:
            _failed("state", error)


def _failed(stage: str, error: Exception) -> None:
    metrics.AUTOSCALER_FAILURES.labels(stage).inc()
    log.warning("held", stage=stage, error=str(error))

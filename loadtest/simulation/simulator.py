"""The discrete-event simulation: arrivals, steps, starts and ends of groups, scrapes, decisions.

With ``sample`` N, it simulates every N-th group and every N-th conversation of the fleet. Scalers
see counts multiplied by N, and the number of groups that they request is divided by N, rounded up.
N = 1 simulates the whole fleet.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from random import Random

from loadtest.simulation.calibration import Calibration
from loadtest.simulation.outcome import Objective, Outcome
from loadtest.simulation.scalers import Scaler
from loadtest.simulation.simulated_group import SimulatedGroup
from loadtest.simulation.simulated_metrics import SimulatedMetrics
from loadtest.simulation.simulated_request import SimulatedRequest
from loadtest.simulation.simulated_router import SimulatedRouter
from serving.autoscaler.signals import FleetCounts, Observation
from serving.routing.snapshot import MemberState
from serving.settings import Settings

_START_SPREAD = 0.1
"""Start times vary uniformly by up to plus or minus this fraction."""


class Simulator:
    """One run of one fleet under one load."""

    def __init__(
        self,
        calibration: Calibration,
        scaler: Scaler,
        settings: Settings,
        objective: Objective,
        *,
        seconds: float,
        sample: int = 1,
        groups: int = 1,
        seed: int = 1,
    ) -> None:
        """Start with ``groups`` ready groups in the whole fleet.

        Args:
            calibration: Parameters of each group.
            scaler: Decides on the number of groups.
            settings: Settings of routing, admission and autoscaling.
            objective: Objectives of a good request.
            seconds: Duration of the arrivals, for which group-seconds are counted.
            sample: See the module's docstring.
            groups: Initial number of groups.
            seed: Seed of the groups' start times.
        """
        self.calibration = calibration
        self.scaler = scaler
        self.settings = settings
        self.objective = objective
        self.sample = sample
        self.router = SimulatedRouter(
            settings.routing, settings.admission, settings.router.request_timeout
        )
        self.telemetry = SimulatedMetrics(settings.autoscaler)
        self.outcome = Outcome(sample, seconds, least=groups, most=groups)
        self.asked = groups
        self.now = 0.0
        self.inflight = 0
        self._random = Random(seed)  # noqa: S311  no secret
        self._events: list[tuple[float, int, str, SimulatedGroup | None, int]] = []
        self._numbers = count()
        self._names = count()
        self._rechecking = False
        for _ in range(self._modelled(groups)):
            self._add_group(ready=True)
        self._at(0.0, "scrape")
        self._at(scaler.interval, "decide")

    def run(self, arrivals: Iterable[SimulatedRequest]) -> Outcome:
        """Run until every request has ended.

        Args:
            arrivals: Requests in order of time, all within ``seconds``.
        """
        source = iter(arrivals)
        coming = next(source, None)
        while coming is not None or self.inflight:
            if coming is not None and coming.at <= self._events[0][0]:
                self._advance(coming.at)
                self._arrive(coming)
                coming = next(source, None)
                continue
            at, _, what, group, version = heappop(self._events)
            self._advance(at)
            match what:
                case "step":
                    assert group is not None
                    if group.version == version:
                        self._step(group)
                case "ready":
                    assert group is not None
                    self._ready(group)
                case "drained":
                    assert group is not None
                    self._end_drain(group)
                case "recheck":
                    self._rechecking = False
                    self._dispatch_queue()
                case "scrape":
                    self._scrape()
                case _:
                    self._decide()
        return self._finished()

    # -- requests ---------------------------------------------------------------------------

    def _arrive(self, sequence: SimulatedRequest) -> None:
        self.outcome.requests += 1
        known = self.calibration
        others = self.inflight / max(len(self.router.groups), 1)
        sequence.overhead = known.overhead + known.overhead_per_request * others
        self.inflight += 1
        placed = self.router.arrive(sequence, self.now)
        if placed is not None:
            self._placed(sequence, *placed)
        elif sequence.refused:
            self._end(sequence)
        else:
            self._recheck()

    def _placed(self, sequence: SimulatedRequest, group: SimulatedGroup, changed: bool) -> None:  # noqa: FBT001
        if sequence.first_at is None:
            self.telemetry.wait.observe(self.now - sequence.at)
        if changed:
            self._plan(group)

    def _step(self, group: SimulatedGroup) -> None:
        step = group.step_seconds
        made = group.finish(self.now)
        late = max(0.0, self.now - self.outcome.seconds)
        self.outcome.busy_seconds += max(0.0, made.seconds - late)
        seen = self.telemetry
        seen.tokens += made.tokens + len(made.begun)
        seen.firsts += len(made.begun)
        if made.tokens:
            seen.itl.observe(step, made.tokens)
        for sequence in made.begun:
            seen.ttft.observe(self.now - sequence.at)
        for sequence in made.ended:
            self.router.ended(sequence, self.now)
            self._end(sequence)
        self.router.apply_cache_events(group)
        if group.start(self.now):
            self._plan(group)
        elif group.state is MemberState.DRAINING and not group.inflight:
            self._remove(group)
        if made.ended:
            self._dispatch_queue()

    def _end(self, sequence: SimulatedRequest) -> None:
        self.inflight -= 1
        sequence.ended_at = self.now
        outcome = self.outcome
        outcome.ended_at = self.now
        outcome.resumed += sequence.resumes > 0
        if sequence.refused:
            outcome.refused += 1
            return
        outcome.count(sequence, self.now, self.objective)

    def _dispatch_queue(self) -> None:
        """Dispatch from the queue as long as its head finds a group."""
        while self.router.queue and (turn := self.router.next_turn(self.now)) is not None:
            sequence, group, changed = turn
            if group is None:
                self._end(sequence)
            else:
                self._placed(sequence, group, changed)
        if self.router.queue:
            self._recheck()

    def _recheck(self) -> None:
        if not self._rechecking:
            self._rechecking = True
            self._at(self.now + self.settings.admission.recheck_interval, "recheck")

    # -- groups -----------------------------------------------------------------------------

    def _modelled(self, groups: int) -> int:
        return -(-groups // self.sample)

    def _add_group(self, *, ready: bool = False) -> None:
        group = SimulatedGroup(f"g{next(self._names)}", self.calibration, self.now)
        self.router.groups[group.group_id] = group
        if ready:
            self._ready(group)
            return
        spread = 1 + _START_SPREAD * (2 * self._random.random() - 1)
        takes = self.calibration.startup * spread + self.calibration.warmup
        self._at(self.now + takes, "ready", group)

    def _ready(self, group: SimulatedGroup) -> None:
        if group.state is MemberState.JOINING and not group.gone:
            group.state = MemberState.READY
            group.dirty = True
            self._dispatch_queue()

    def _scale(self, target: int) -> None:
        """Scale to ``target`` groups; remove groups that are not ready first, then the newest."""
        living = [g for g in self.router.groups.values() if g.state is not MemberState.DRAINING]
        wanted = self._modelled(target)
        for _ in range(wanted - len(living)):
            self._add_group()
        leaving = sorted(
            living, key=lambda group: (group.state is MemberState.READY, -group.asked_at)
        )
        for group in leaving[: max(len(living) - wanted, 0)]:
            if not group.inflight:
                self._remove(group)
                continue
            group.state = MemberState.DRAINING
            group.dirty = True
            self._at(self.now + self.settings.autoscaler.drain_timeout, "drained", group)

    def _end_drain(self, group: SimulatedGroup) -> None:
        """Stop a group at the end of its drain timeout; resume unfinished requests elsewhere."""
        if group.gone:
            return
        for sequence in group.evict():
            self.router.resume(sequence, self.now)
        self._remove(group)
        self._dispatch_queue()

    def _remove(self, group: SimulatedGroup) -> None:
        group.gone = True
        self.router.forget(group)

    def _plan(self, group: SimulatedGroup) -> None:
        assert group.until is not None
        self._at(group.until, "step", group, group.version)

    # -- time -------------------------------------------------------------------------------

    def _at(
        self, at: float, what: str, group: SimulatedGroup | None = None, version: int = 0
    ) -> None:
        heappush(self._events, (at, next(self._numbers), what, group, version))

    def _advance(self, at: float) -> None:
        """Advance the time and count group-seconds."""
        assert at >= self.now, "time never goes back"
        paid_until = min(at, self.outcome.seconds)
        if paid_until > self.now:
            groups = len(self.router.groups) * self.sample
            self.outcome.group_seconds += (paid_until - self.now) * groups
        self.now = at

    def _scrape(self) -> None:
        queue = self.router.queue
        self.telemetry.scrape(
            self.now, queued=len(queue), queued_tokens=queue.tokens, inflight=self.inflight
        )
        self._at(self.now + self.settings.autoscaler.scrape_interval, "scrape")

    def _decide(self) -> None:
        self._at(self.now + self.scaler.interval, "decide")
        if self.now > self.outcome.seconds:
            return  # the remaining requests finish on the current groups
        ready = min(self.router.ready * self.sample, self.asked)
        seen = Observation(
            self.asked,
            FleetCounts(ready, self.router.parked * self.sample),
            self.telemetry.signals(self.now, ready, self.sample),
        )
        target = self.scaler.target(seen, self.now)
        if target == self.asked:
            return
        outcome = self.outcome
        outcome.changes += 1
        outcome.least, outcome.most = min(outcome.least, target), max(outcome.most, target)
        self.asked = target
        self._scale(target)

    def _finished(self) -> Outcome:
        self._advance(max(self.now, self.outcome.seconds))
        self.outcome.decisions = self.router.decisions
        return self.outcome

"""The event loop: arrivals, steps, groups that come and go, scrapes and decisions.

With ``sample`` N the model holds every N-th group and every N-th conversation of the fleet that
is meant: what is counted is counted N times for those who decide, and what they ask for is divided
by N, rounded up. N = 1 is the whole fleet.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from random import Random

from loadtest.simulation.calibration import Calibration
from loadtest.simulation.group import Group
from loadtest.simulation.outcome import Objective, Outcome
from loadtest.simulation.router import Router
from loadtest.simulation.scalers import Scaler
from loadtest.simulation.sequence import Sequence
from loadtest.simulation.telemetry import Telemetry
from serving.autoscaler.snapshot import FleetCounts, Observation
from serving.routing.snapshot import MemberState
from serving.settings import Settings

_START_SPREAD = 0.1
"""Starts differ by so much, evenly, up and down."""


class World:
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
        """Begin with ``groups`` groups (of the whole fleet) ready.

        Args:
            calibration: of each group.
            scaler: says how many there should be.
            settings: of routing, admission and autoscaling.
            objective: for the tally.
            seconds: how long requests come and groups are paid for.
            sample: see the module.
            groups: at first.
            seed: of the times that groups take to start.
        """
        self.calibration = calibration
        self.scaler = scaler
        self.settings = settings
        self.objective = objective
        self.sample = sample
        self.router = Router(settings.routing, settings.admission, settings.router.request_timeout)
        self.telemetry = Telemetry(settings.autoscaler)
        self.outcome = Outcome(sample, seconds, least=groups, most=groups)
        self.asked = groups
        self.now = 0.0
        self.inflight = 0
        self._random = Random(seed)  # noqa: S311  no secret
        self._events: list[tuple[float, int, str, Group | None, int]] = []
        self._numbers = count()
        self._names = count()
        self._rechecking = False
        for _ in range(self._modelled(groups)):
            self._ask_for_group(ready=True)
        self._at(0.0, "scrape")
        self._at(scaler.interval, "decide")

    def run(self, arrivals: Iterable[Sequence]) -> Outcome:
        """Run until every request has ended.

        Args:
            arrivals: in order of time, all before the end.
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
                case "look":
                    self._rechecking = False
                    self._look()
                case "scrape":
                    self._scrape()
                case _:
                    self._decide()
        return self._finished()

    # -- requests ---------------------------------------------------------------------------

    def _arrive(self, sequence: Sequence) -> None:
        self.outcome.requests += 1
        known = self.calibration
        others = self.inflight / max(len(self.router.groups), 1)
        sequence.overhead = known.overhead + known.overhead_per_request * others
        self.inflight += 1
        placed = self.router.arrive(sequence, self.now)
        if placed is not None:
            self._launched(sequence, *placed)
        elif sequence.refused:
            self._end(sequence)
        else:
            self._recheck()

    def _launched(self, sequence: Sequence, group: Group, changed: bool) -> None:  # noqa: FBT001
        if sequence.first_at is None:
            self.telemetry.wait.observe(self.now - sequence.at)
        if changed:
            self._plan(group)

    def _step(self, group: Group) -> None:
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
        self.router.told(group)
        if group.start(self.now):
            self._plan(group)
        elif group.state is MemberState.DRAINING and not group.inflight:
            self._remove(group)
        if made.ended:
            self._look()

    def _end(self, sequence: Sequence) -> None:
        self.inflight -= 1
        sequence.ended_at = self.now
        outcome = self.outcome
        outcome.ended_at = self.now
        outcome.resumed += sequence.resumes > 0
        if sequence.refused:
            outcome.refused += 1
            return
        outcome.count(sequence, self.now, self.objective)

    def _look(self) -> None:
        """Launch from the queue as long as its head is taken."""
        while self.router.queue and (turn := self.router.next_turn(self.now)) is not None:
            sequence, group, changed = turn
            if group is None:
                self._end(sequence)
            else:
                self._launched(sequence, group, changed)
        if self.router.queue:
            self._recheck()

    def _recheck(self) -> None:
        if not self._rechecking:
            self._rechecking = True
            self._at(self.now + self.settings.admission.recheck_interval, "look")

    # -- groups -----------------------------------------------------------------------------

    def _modelled(self, groups: int) -> int:
        return -(-groups // self.sample)

    def _ask_for_group(self, *, ready: bool = False) -> None:
        group = Group(f"g{next(self._names)}", self.calibration, self.now)
        self.router.groups[group.group_id] = group
        if ready:
            self._ready(group)
            return
        spread = 1 + _START_SPREAD * (2 * self._random.random() - 1)
        takes = self.calibration.startup * spread + self.calibration.warmup
        self._at(self.now + takes, "ready", group)

    def _ready(self, group: Group) -> None:
        if group.state is MemberState.JOINING and not group.gone:
            group.state = MemberState.READY
            group.dirty = True
            self._look()

    def _scale(self, target: int) -> None:
        """Bring the groups to ``target``: the ones that go are not ready yet, or the newest."""
        living = [g for g in self.router.groups.values() if g.state is not MemberState.DRAINING]
        wanted = self._modelled(target)
        for _ in range(wanted - len(living)):
            self._ask_for_group()
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

    def _end_drain(self, group: Group) -> None:
        """Hand over what a draining group has not finished in its time."""
        if group.gone:
            return
        for sequence in group.evict():
            self.router.resume(sequence, self.now)
        self._remove(group)
        self._look()

    def _remove(self, group: Group) -> None:
        group.gone = True
        self.router.forget(group)

    def _plan(self, group: Group) -> None:
        assert group.until is not None
        self._at(group.until, "step", group, group.version)

    # -- time -------------------------------------------------------------------------------

    def _at(self, at: float, what: str, group: Group | None = None, version: int = 0) -> None:
        heappush(self._events, (at, next(self._numbers), what, group, version))

    def _advance(self, at: float) -> None:
        """Let time pass, and charge for the groups."""
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
            return  # what is left is finished by the groups that are there
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
        self.outcome.picks = self.router.picks
        return self.outcome

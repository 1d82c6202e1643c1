"""Draws a cluster, traffic and faults from a seed, runs them, and checks for leaks."""

import asyncio
import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import structlog

from tests.faults.clients import run_client
from tests.faults.cluster import Cluster, Shape
from tests.faults.faults import FAULTS, Fault
from tests.faults.history import History
from tests.faults.network import patched_calls
from tests.faults.simulation import Deadlock, VirtualLoop, run_virtually
from tests.faults.traffic import Mix, Spec, random_traffic
from tests.faults.validate import Rules, violations

_LONGEST = 400.0
"""Virtual seconds within which every client's request must have ended."""
_SETTLE = 1.0
"""Seconds after the end of the last request at which no trace of it may remain."""


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault, with its time in seconds from the start of the traffic."""

    at: float
    fault: Fault


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that determines a history."""

    seed: int
    shape: Shape
    traffic: tuple[Spec, ...]
    strikes: tuple[Strike, ...] = ()
    rules: Rules = field(default_factory=Rules)

    def __str__(self) -> str:
        shape = self.shape
        strikes = ", ".join(f"{strike.fault.name} at {strike.at:.2f}" for strike in self.strikes)
        return (
            f"{shape.routers} routers, {shape.groups} groups of {shape.ranks} ranks, "
            f"{len(self.traffic)} requests; {strikes or 'no fault'}"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """A history and its violations."""

    history: History
    violations: list[str]

    def __str__(self) -> str:
        listed = "\n".join(f"  VIOLATION {line}" for line in self.violations) or "  no violation"
        return (
            f"{self.history.title}\n{listed}\n  replay: make faults-replay SEED={self.history.seed}"
        )


def random_scenario(seed: int) -> Scenario:
    """Draw a scenario; the scenario and its history depend only on the seed."""
    rng = random.Random(seed)
    shape = Shape(
        routers=rng.choice((1, 1, 1, 2)),
        groups=rng.choice((1, 2, 2, 3)),
        ranks=rng.choice((1, 2, 2, 3)),
        token_delay=rng.choice((0.03, 0.1, 0.2)),
        slots=rng.choice((2, 8)),
        max_resumes=rng.choice((1, 3, 6)),
        suspect_tokens=rng.choice((0, 4, 32)),
        queue=rng.choice((2, 1024, 1024)),
    )
    names = [name for name in FAULTS if name != "kill_router" or shape.routers > 1]
    chosen = [rng.choice(names) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 3, 4, 4, 5)))]
    mix = Mix(
        requests=rng.randint(6, 16),
        seconds=rng.choice((0.0, 1.0, 4.0)),
        poison=1 if rng.random() < 0.1 else 0,
        routers=shape.routers,
    )
    span = mix.seconds + 30 * shape.token_delay
    strikes = sorted(
        (Strike(round(rng.uniform(0.0, span), 3), FAULTS[name]) for name in chosen),
        key=lambda strike: strike.at,
    )
    return Scenario(seed, shape, tuple(random_traffic(rng, mix)), tuple(strikes), Rules())


def run_scenario(scenario: Scenario) -> Verdict:
    """Run a scenario in virtual time and validate its history."""
    scenario = replace(scenario, rules=_rules(scenario))
    history = History(scenario.seed, str(scenario))
    history.specs = {spec.name: spec for spec in scenario.traffic}
    with _quiet():
        try:
            run_virtually(_play(scenario, history))
        except (Deadlock, TimeoutError) as error:
            history.leftovers.append(f"the run did not end: {type(error).__name__} {error}")
    return Verdict(history, violations(history, scenario.rules))


async def _play(scenario: Scenario, history: History) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    rng = random.Random(f"run {scenario.seed}")
    cluster = Cluster(scenario.shape, rng, history)
    with patched_calls(cluster.network):
        await cluster.start()
        clients = [asyncio.create_task(run_client(cluster, spec)) for spec in scenario.traffic]
        strikes = [
            asyncio.create_task(_strike(cluster, strike, f"{scenario.seed} {number}"))
            for number, strike in enumerate(scenario.strikes)
        ]
        async with asyncio.timeout(_LONGEST):
            await asyncio.gather(*clients)
        await _settle(cluster, scenario)
        history.leftovers.extend(cluster.leftovers())
        for strike in strikes:
            strike.cancel()
        for failed in await asyncio.gather(*strikes, return_exceptions=True):
            if isinstance(failed, Exception):
                raise failed
        await cluster.stop()
        history.leftovers.extend(_tasks_left(loop))


async def _strike(cluster: Cluster, strike: Strike, seed: str) -> None:
    await asyncio.sleep(strike.at)
    await strike.fault.inject(cluster, random.Random(seed))


async def _settle(cluster: Cluster, scenario: Scenario) -> None:
    """Wait until the work in flight has ended."""
    await asyncio.sleep(max(scenario.rules.abort_seconds, _SETTLE))
    cluster.note("all requests have ended")


def _tasks_left(loop: VirtualLoop) -> Iterator[str]:
    mine = asyncio.current_task()
    for process, tasks in loop.tasks.items():
        for task in tasks:
            if task is not mine:
                yield f"a task of {process}: {task.get_coro()!r}"


def _rules(scenario: Scenario) -> Rules:
    """Return rules that allow for faults that cannot be detected at once."""
    shape = scenario.shape
    settings = shape.settings()
    silent = any(strike.fault.silent for strike in scenario.strikes)
    slack = 2 * shape.keepalive + 2.0 if silent else 0.0
    return replace(
        scenario.rules,
        max_resumes=settings.fleet.max_resumes,
        suspect_losses=settings.fleet.suspect_losses,
        suspects=settings.fleet.suspect_tokens > 0,
        blamed=_coincidences(scenario),
        abort_seconds=1.0 + slack,
        request_timeout=shape.request_timeout,
    )


def _coincidences(scenario: Scenario) -> int:
    """Return the number of losses that may hit a suspect while it is alone on its group."""
    shape = scenario.shape
    by_faults = sum(
        shape.groups if strike.fault.name == "kill_all" else 1 for strike in scenario.strikes
    )
    # A router isolates its own suspects, not those of other routers.
    by_poison = (
        sum(spec.poison for spec in scenario.traffic) * shape.settings().fleet.suspect_losses
    )
    return by_faults * shape.routers + by_poison * (shape.routers - 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the logs of hundreds of lost ranks."""
    before = structlog.get_config()
    structlog.configure(
        processors=[],
        wrapper_class=structlog.make_filtering_bound_logger(50),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)

"""The control loop of several pools, with fakes."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serving.autoscaler.pool_loop import PoolsAutoscaler, decide_pools
from serving.autoscaler.pool_signals import PoolsSnapshot
from serving.autoscaler.pools import Measured, observe
from serving.autoscaler.recording import load_states, read_cycles
from serving.autoscaler.signals import Signal
from serving.telemetry import autoscaler_metrics as metrics
from tests.support.autoscaler_metrics import sample
from tests.support.clock import ManualClock
from tests.support.fake_actuator import FakeActuator
from tests.unit.autoscaler.fleets import CALM, IDLE, fleet, measured, pool
from tests.unit.autoscaler.observations import settings

HOT = CALM | {Signal.TTFT_P90: 1.2}
A, B = "a/default", "b/default"
NOW = 1_000_000.0


class Source:
    def __init__(self, look):
        self.answer = look

    async def read(self):
        return self.answer


def look(a=CALM, b=CALM, ready=(2, 2), parked=None, queues=None):
    return PoolsSnapshot(
        fleet(dict(zip((A, B), ready, strict=True)), parked=parked), measured({A: a, B: b}, queues)
    )


def autoscaler(seen, groups=(2, 2), *, dry_run=False, states=None, **changes):
    pools = [pool("a", 2.0), pool("b", 1.0)]
    actuators = {A: FakeActuator(groups[0]), B: FakeActuator(groups[1])}
    source = Source(seen)
    made = PoolsAutoscaler(
        pools,
        source,
        actuators,
        settings(**changes),
        ManualClock(NOW),
        states=states,
        dry_run=dry_run,
    )
    return made, actuators, source


async def test_each_pool_is_decided_from_its_own_signals():
    made, actuators, _ = autoscaler(look(a=HOT))
    cycle = await made.run_once()
    assert (actuators[A].asked, actuators[B].asked) == ([3], [])
    assert cycle.decisions[A].reason.startswith("slo pressure")
    assert sample("pool_target_groups", model="a", pool="default") == 3
    assert sample("pool_target_groups", model="b", pool="default") == 2
    assert sample("pool_vote_groups", model="a", pool="default", rule="slo pressure") == 3
    assert (sample("target_groups"), sample("current_groups")) == (5, 4)


async def test_the_shared_limit_holds_the_second_pool_only():
    made, actuators, _ = autoscaler(look(a=HOT, b=HOT), max_gpus=8.0)
    cycle = await made.run_once()
    assert (actuators[A].groups, actuators[B].groups) == (3, 2)
    assert cycle.decisions[B].reason.startswith("max_gpus 8; slo pressure")
    assert sample("pool_wanted_groups", model="b", pool="default") == 3


async def test_a_parked_request_starts_a_group_of_its_model_alone():
    made, actuators, _ = autoscaler(look(IDLE, IDLE, (0, 0), parked={"b": 1}), (0, 0))
    await made.run_once()
    assert (actuators[A].groups, actuators[B].groups) == (0, 1)


async def test_an_unknown_number_holds_that_pool_alone():
    before = sample("failures_total", stage="target")
    made, actuators, _ = autoscaler(look(a=HOT, b=HOT))
    actuators[A].failing = "no such application"
    cycle = await made.run_once()
    assert list(cycle.decisions) == [B]
    assert (actuators[A].groups, actuators[B].groups) == (2, 3)
    assert sample("failures_total", stage="target") == before + 1
    actuators[B].failing = "away"
    assert await made.run_once() is None


async def test_a_pool_never_seen_counts_with_its_maximum():
    made, actuators, _ = autoscaler(look(b=HOT), max_gpus=18.0)
    actuators[A].failing = "no such application"
    await made.run_once()
    assert actuators[B].groups == 2, "8 groups of 2 GPUs and 2 of 1 leave no room"
    made, actuators, _ = autoscaler(look(b=HOT), max_gpus=18.0)
    await made.run_once()
    actuators[A].failing = "away for a while"
    await made.run_once()
    assert actuators[B].groups == 3, "2 groups of 2 GPUs, as last seen"


async def test_a_failed_change_does_not_affect_the_other_pool():
    before = sample("failures_total", stage="scale")
    made, actuators, _ = autoscaler(look(a=HOT, b=HOT))

    async def broken(groups):
        raise RuntimeError(groups)

    actuators[A].scale = broken
    await made.run_once()
    assert actuators[B].groups == 3
    assert sample("failures_total", stage="scale") == before + 1


async def test_a_slow_removal_does_not_delay_the_start_of_another_model():
    made, actuators, source = autoscaler(
        look(CALM, IDLE, (3, 0)), (3, 0), down_window=1.0, interval=0.01, max_gpus=7.0
    )
    made._pools[0] = pool("a", 2.0, down_window=1.0, max_step_down=1)
    slow, finish = asyncio.Event(), asyncio.Event()
    scale = actuators[A].scale

    async def drain(groups):
        slow.set()
        await finish.wait()
        await scale(groups)

    actuators[A].scale = drain
    await made.run_once()
    made._clock.now += 2.0
    await made.run_once()
    assert slow.is_set()
    source.answer = look(CALM, IDLE, (3, 0), parked={"b": 1})
    cycle = await made.run_once()
    assert list(cycle.decisions) == [B], "the other pool still changes"
    assert actuators[B].groups == 1
    assert actuators[A].groups == 3
    finish.set()
    await made.run_once()
    assert actuators[A].groups == 2
    await made.close()


async def test_closing_ends_a_change_in_progress():
    made, actuators, _ = autoscaler(look(a=HOT), interval=0.01)
    ended = []

    async def hang(groups):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(groups)

    actuators[A].scale = hang
    await made.run_once()
    assert ended == []
    await made.close()
    assert ended == [3]


async def test_a_dry_run_changes_nothing(tmp_path):
    state = tmp_path / "state.json"
    made, actuators, _ = autoscaler(look(a=HOT), dry_run=True, state_file=str(state))
    assert (await made.run_once()).decisions[A].target == 3
    assert actuators[A].asked == []
    assert not state.exists()


async def test_without_signals_it_is_blind_and_still_starts_parked_models():
    seen = PoolsSnapshot(fleet({}, parked={"a": 1}), Measured(), "Prometheus is away")
    made, actuators, _ = autoscaler(seen, (0, 2))
    cycle = await made.run_once()
    assert cycle.problem == "Prometheus is away"
    assert sample("blind") == 1
    assert (actuators[A].groups, actuators[B].groups) == (1, 2)


async def test_signals_and_hours_are_kept_by_pool(tmp_path):
    files = {
        "record_file": str(tmp_path / "seen.jsonl"),
        "state_file": str(tmp_path / "state.json"),
    }
    made, _, _ = autoscaler(look(a=HOT), **files)
    await made.run_once()
    made._clock.now += 3600.0
    await made.run_once()
    cycles = list(read_cycles(tmp_path / "seen.jsonl"))
    assert [[each.pool for each in cycle] for _, cycle in cycles] == [[A, B]] * 2
    assert cycles[1][1][0].target == 3
    states = load_states(tmp_path / "state.json", [A, B])
    assert (states[A].spent, states[B].spent) == (6.0, 2.0)
    assert sample("gpu_hours_today") == 8.0


async def test_hours_of_all_pools_count_towards_the_cap(tmp_path):
    made, actuators, _ = autoscaler(look(), gpu_hours_per_day=6.0)
    await made.run_once()
    made._clock.now += 3600.0
    cycle = await made.run_once()
    assert (actuators[A].groups, actuators[B].groups) == (0, 0)
    assert cycle.decisions[A].reason.startswith("6 of 6 GPU-hours")


async def test_notices_name_the_pool():
    made, actuators, _ = autoscaler(look())
    made._pools[1] = pool("b", min_groups=2, max_groups=2)
    actuators[A].notices = lambda: ("a permission is missing",)
    notices = (await made.run_once()).notices
    assert notices[0] == f"pool {A}: a permission is missing"
    assert notices[1].startswith(f"pool {B}: min_groups and max_groups are both 2")


def test_the_votes_metric_has_model_and_pool():
    assert metrics.AUTOSCALER_POOL_VOTES._labelnames == ("model", "pool", "rule")


# -- properties -----------------------------------------------------------------------------------

LOADS = st.fixed_dictionaries(
    {
        Signal.TTFT_P90: st.none() | st.floats(0, 10),
        Signal.ITL_P90: st.none() | st.floats(0, 1),
        Signal.TOKEN_RATE: st.floats(0, 20_000),
        Signal.REQUEST_RATE: st.floats(0, 100),
        Signal.INFLIGHT: st.floats(0, 500),
    }
)
QUEUES = st.tuples(
    st.floats(0, 100), st.floats(0, 100_000), st.none() | st.floats(0, 60), st.integers(0, 20)
)
STEP = st.tuples(LOADS, QUEUES)


def play(pools, steps, limits):
    """Run the policy: each step has the load of every pool; groups are ready one step later."""
    shared = settings(**limits)
    targets = {each.key: each.settings.min_groups for each in pools}
    ready = dict(targets)
    states, now, history = {}, NOW, []
    for step in steps:
        loads = {each.key: load for each, (load, _) in zip(pools, step, strict=True)}
        queues = {each.model: queue[:3] for each, (_, queue) in zip(pools, step, strict=True)}
        waiting = {each.model: queue[3] for each, (_, queue) in zip(pools, step, strict=True)}
        parked = {each.model: waiting[each.model] for each in pools if not ready[each.key]}
        seen = fleet(ready, waiting, parked)
        found = observe(pools, targets, seen, measured(loads, queues), states, now)
        decisions, wanted, states = decide_pools(pools, found, states, {}, now, shared)
        before, targets = targets, {key: each.target for key, each in decisions.items()}
        ready = {key: min(before[key], targets[key]) for key in targets}
        history.append((before, wanted, targets))
        now += 60.0
    return history


@hypothesis_settings(max_examples=60)
@given(st.lists(st.tuples(STEP, STEP, STEP), min_size=1, max_size=25), st.integers(0, 20))
def test_no_history_exceeds_a_shared_limit(steps, gpus):
    pools = [pool("a", 2.0), pool("b", 1.0), pool("c", 4.0)]
    for before, _, targets in play(pools, steps, {"max_gpus": max(1.0, float(gpus))}):
        peak = sum(each.gpus * max(before[each.key], targets[each.key]) for each in pools)
        assert peak <= max(1, gpus)


@hypothesis_settings(max_examples=60)
@given(
    st.lists(STEP, min_size=1, max_size=25),
    st.lists(STEP, min_size=25, max_size=25),
    st.lists(STEP, min_size=25, max_size=25),
)
def test_without_a_shared_limit_no_load_moves_another_pool(own, first, second):
    pools = [pool("a", 2.0), pool("b", 1.0)]
    one, two = (
        [targets["a/default"] for _, _, targets in play(pools, list(zip(own, other)), {})]  # noqa: B905
        for other in (first, second)
    )
    assert one == two


@hypothesis_settings(max_examples=60)
@given(st.lists(st.tuples(STEP, STEP), min_size=1, max_size=25))
def test_what_a_pool_wants_depends_on_the_others_only_through_what_it_got(steps):
    """Other pools can limit a pool, but never push it above the number of groups that it wants."""
    pools = [pool("a", 2.0), pool("b", 1.0)]
    for _, wanted, targets in play(pools, steps, {"max_gpus": 9.0}):
        for key, each in wanted.items():
            assert targets[key] <= max(each.target, each.current)
            assert targets[key] <= each.target


@pytest.mark.parametrize("busy", [CALM, HOT], ids=["calm", "hot"])
def test_to_zero_and_back_while_another_model_is_busy(busy):
    """An idle pool scales to zero, and back for a parked request; the other pool never changes."""
    pools = [pool("a", 1.0, max_groups=1), pool("b", 1.0)]
    idle, none = (IDLE, (0.0, 0.0, 0.0, 0)), (busy, (0.0, 0.0, 0.0, 0))
    arrived = (IDLE, (1.0, 100.0, None, 1))
    served = (CALM, (0.0, 0.0, 0.0, 0))
    steps = [
        *[(none, arrived)] * 2,
        *[(none, served)] * 3,
        *[(none, idle)] * 30,
        *[(none, arrived)] * 2,
    ]
    history = [targets for _, _, targets in play(pools, steps, {"max_gpus": 2.0})]
    b = [targets[B] for targets in history]
    assert b[:5] == [1] * 5
    assert b[-3:] == [0, 1, 1]
    assert {targets[A] for targets in history[1:]} == {1}

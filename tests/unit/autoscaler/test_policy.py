"""The whole decision: windows, missing data, parked requests, and invariants for any input."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from serving.autoscaler.decision import Action, PolicyState
from serving.autoscaler.policy import decide
from serving.autoscaler.signals import FleetCounts, Observation, Reading, Signal
from serving.settings import ScheduleFloor
from tests.unit.autoscaler.observations import CALM, IDLE, observation, settings

NOW = 20_000 * 86400.0


START = PolicyState()


def target(seen, state=START, now=NOW, **changes):
    decision, state = decide(seen, state, now, settings(**changes), 2.0)
    return decision.target, state


HOT = observation(2, ttft_p90=1.2)


def test_up_at_once():
    decision, _ = decide(HOT, PolicyState(), NOW, settings(), 2.0)
    assert (decision.target, decision.action) == (3, Action.UP)
    assert decision.reason == "slo pressure: P90 TTFT 1.2 s, objective 1 s"


def test_up_only_after_its_window():
    state = PolicyState()
    for second in range(0, 60, 10):
        got, state = target(HOT, state, NOW + second, up_window=60.0)
        assert got == 2
    assert target(HOT, state, NOW + 70, up_window=60.0)[0] == 3


def test_down_only_after_its_window_and_not_after_a_restart():
    state = PolicyState()
    for second in range(0, 301, 10):
        got, state = target(observation(2), state, NOW + second)
        assert got == 2
    assert target(observation(2), state, NOW + 310)[0] == 1


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        pytest.param([2, 2, 2, 2], 8, id="none-comes: others are asked for"),
        pytest.param([2, 3, 4, 5], 6, id="one-by-one: the rest is on its way too"),
    ],
)
def test_a_long_ramp_up_loses_no_group(ready, expected):
    state = PolicyState()
    for step, count in enumerate(ready):
        seen = observation(6, ready=count, token_rate=4500)
        got, state = target(seen, state, NOW + 250 * step)
    assert got == expected


def test_one_busy_moment_starts_the_window_again():
    state = PolicyState()
    for second in range(0, 290, 10):
        _, state = target(observation(2), state, NOW + second)
    _, state = target(observation(2, ttft_p90=0.7), state, NOW + 290)
    assert target(observation(2), state, NOW + 400)[0] == 2
    assert target(observation(2), state, NOW + 591)[0] == 1


def test_after_blindness_fewer_need_a_whole_window():
    state = PolicyState()
    for second in range(0, 290, 10):
        _, state = target(observation(2), state, NOW + second)
    decision, state = decide(observation(2, age=99.0), state, NOW + 290, settings(), 2.0)
    assert decision.blind
    assert decision.reason == "hold: no fresh data"
    assert target(observation(2), state, NOW + 400)[0] == 2


def test_to_zero_and_back():
    state, step = PolicyState(), 10
    for second in range(0, 920, step):
        got, state = target(observation(1, base=IDLE), state, NOW + second)
        assert got == (0 if second >= 900 else 1)
    asleep = observation(0, base=IDLE)
    assert target(asleep, state, NOW + 1000)[0] == 0
    decision, _ = decide(
        replace(asleep, fleet=FleetCounts(0, 2)), state, NOW + 1001, settings(up_window=60.0), 2.0
    )
    assert decision.target == 1
    assert decision.reason == "parked: 2 requests are parked, no group is ready"


def test_the_wait_for_the_first_group_does_not_ask_for_a_second():
    _, state = target(observation(1, ready=0, parked=1, base=IDLE), now=NOW)
    cold = observation(1, ttft_p90=46.0, queue_wait_p90=46.0, token_rate=100.0)
    got, state = target(cold, state, NOW + 46)
    assert got == 1
    assert target(cold, state, NOW + 105)[0] == 1
    assert target(cold, state, NOW + 106)[0] > 1


def test_parked_requests_wake_a_blind_autoscaler():
    decision, _ = decide(Observation(0, FleetCounts(0, 1), {}), PolicyState(), NOW, settings(), 2.0)
    assert decision.blind
    assert decision.target == 1


def test_schedule_holds_while_blind():
    schedule = (ScheduleFloor(when="* * * * *", groups=3),)
    decision, _ = decide(
        Observation(1, None, {}), PolicyState(), NOW, settings(schedule=schedule), 2.0
    )
    assert decision.target == 3
    assert "schedule" in decision.reason


def test_cost_cap_brings_the_fleet_to_its_least():
    state = PolicyState(spent_day=20_000, spent=10.0, spent_at=NOW)
    decision, _ = decide(HOT, state, NOW, settings(gpu_hours_per_day=10.0, min_groups=1), 2.0)
    assert decision.target == 1
    assert decision.reason.startswith("10 of 10 GPU-hours")


def test_one_step_at_a_time():
    decision, _ = decide(
        observation(1, token_rate=9000), PolicyState(), NOW, settings(max_step_up=2), 2.0
    )
    assert decision.target == 3
    assert decision.reason.endswith("(one step towards 12)")


def test_capacity_is_learnt_while_requests_queue():
    unknown = {"group_tokens_per_second": None}
    _, state = target(observation(2), **unknown)
    assert state.capacity is None
    _, state = target(observation(2, queue_requests=5, token_rate=1600), state, NOW + 1, **unknown)
    assert state.capacity == pytest.approx(800)
    _, state = target(observation(2, queue_requests=5, token_rate=1800), state, NOW + 2, **unknown)
    assert state.capacity == pytest.approx(830)


# -- invariants for any input ------------------------------------------------------------------

values = st.one_of(st.none(), st.floats(0, 1e5))
readings = st.builds(Reading, values, st.floats(0, 60), st.floats(0, 1))
signals = st.dictionaries(st.sampled_from(Signal), readings)
fleets = st.one_of(st.none(), st.builds(FleetCounts, st.integers(0, 12), st.integers(0, 5)))
states = st.builds(
    PolicyState,
    wanted=st.lists(st.tuples(st.floats(NOW - 900, NOW), st.integers(0, 20)), max_size=5).map(
        tuple
    ),
    idle_since=st.one_of(st.none(), st.floats(NOW - 2000, NOW)),
    ready=st.one_of(st.none(), st.integers(0, 8)),
    warming_since=st.one_of(st.none(), st.floats(NOW - 2000, NOW)),
    asleep=st.booleans(),
    woke_at=st.one_of(st.none(), st.floats(NOW - 200, NOW)),
    capacity=st.one_of(st.none(), st.floats(1, 1e4)),
    spent_day=st.just(20_000),
    spent=st.floats(0, 500),
    spent_at=st.just(NOW),
)
laws = st.builds(
    lambda low, more, up, down, floor, cap, window: settings(
        min_groups=low,
        max_groups=low + more,
        max_step_up=up,
        max_step_down=down,
        schedule=(ScheduleFloor(when="* * * * *", groups=floor),),
        gpu_hours_per_day=cap,
        up_window=window,
    ),
    st.integers(0, 4),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 10),
    st.one_of(st.none(), st.floats(1, 400)),
    st.floats(0, 100),
)


@given(st.integers(0, 20), fleets, signals, states, laws)
def test_never_beyond_bounds(current, fleet, seen, state, scaling):
    decision, _ = decide(Observation(current, fleet, seen), state, NOW, scaling, 2.0)
    assert scaling.min_groups <= decision.target <= scaling.max_groups
    assert decision.reason


stale = st.one_of(
    st.builds(Reading, values, st.floats(30.001, 1e6), st.floats(0, 1)),
    st.builds(Reading, values, st.floats(0, 60), st.floats(0.501, 1)),
)


@given(
    st.integers(0, 8),
    st.one_of(st.none(), st.builds(FleetCounts, st.integers(0, 12), st.just(0))),
    st.dictionaries(st.sampled_from(Signal), stale),
    states,
)
def test_stale_data_never_scales(current, fleet, seen, state):
    decision, _ = decide(Observation(current, fleet, seen), state, NOW, settings(), 2.0)
    assert decision.target == current
    assert decision.blind


@given(
    st.integers(1, 8),
    st.sampled_from(sorted(CALM)),
    st.sampled_from(["old", "gone"]),
    states,
)
def test_one_stale_signal_never_shrinks_on_its_account(current, name, how, state):
    """Without data, no rule votes for fewer groups."""
    seen = observation(current)
    reading = Reading(CALM[name], 99.0) if how == "old" else None
    left = {key: value for key, value in seen.signals.items() if key != name}
    if reading:
        left[name] = reading
    whole, _ = decide(seen, state, NOW, settings(), 2.0)
    holed, _ = decide(replace(seen, signals=left), state, NOW, settings(), 2.0)
    assert holed.target >= whole.target


pressures = (
    Signal.TTFT_P90,
    Signal.ITL_P90,
    Signal.QUEUE_WAIT_P90,
    Signal.TOKEN_RATE,
    Signal.QUEUE_TOKENS,
    Signal.INFLIGHT,
)
factors = st.floats(0, 100)


@given(
    st.integers(0, 8),
    st.integers(0, 8),
    states,
    laws,
    st.fixed_dictionaries(dict.fromkeys(pressures, st.floats(0, 10))),
    st.fixed_dictionaries(dict.fromkeys(pressures, st.one_of(st.just(0.0), factors))),
)
def test_more_pressure_never_gives_fewer_groups(current, ready, state, scaling, base, more):
    def seen(extra):
        scale = {Signal.TOKEN_RATE: 1000.0, Signal.QUEUE_TOKENS: 1000.0}
        found = dict(CALM)
        for signal in pressures:
            found[signal] = (base[signal] + extra * more[signal]) * scale.get(signal, 1.0)
        return observation(current, ready=min(ready, current), base=found)

    calm, _ = decide(seen(0), state, NOW, scaling, 2.0)
    busy, _ = decide(seen(1), state, NOW, scaling, 2.0)
    assert busy.target >= calm.target


@examples(max_examples=40)
@given(
    # The request rate of the smallest demands would be rounded to 0.
    demand=st.floats(0, 9000, allow_subnormal=False),
    start=st.integers(0, 8),
    warm_up=st.integers(0, 30),
    known=st.booleans(),
)
def test_no_flapping_on_constant_load(demand, start, warm_up, known):
    """With linear latencies and a constant load, the number of groups settles and stays."""
    scaling = settings(group_tokens_per_second=1000.0 if known else None, max_step_down=1)
    groups, pending, state, path = start, [], PolicyState(), []
    ready, queue = start, 0.0
    for step in range(500):
        now = NOW + 10 * step
        pending = [(when, count) for when, count in pending if when > step]
        ready = groups - sum(count for _, count in pending)
        done = min(demand + queue / 10, ready * 1000.0)
        queue = min(max(0.0, queue + (demand - done) * 10), 1e6)
        load = 2.0 if queue and ready else (demand / (ready * 1000.0) if ready else 0.0)
        rate = done / 100
        seen = observation(
            groups,
            ready=ready,
            parked=int(demand > 0 and not ready),
            ttft_p90=load if rate else None,
            itl_p90=load / 10 if rate else None,
            queue_wait_p90=0.0 if not queue else (2.0 if rate else None),
            queue_requests=queue / 100,
            queue_tokens=queue,
            token_rate=done,
            request_rate=rate,
            inflight=demand / 100,
        )
        decision, state = decide(seen, state, now, scaling, 2.0)
        if decision.target > groups:
            pending.append((step + 1 + warm_up, decision.target - groups))
        if decision.target < groups:
            # Groups that are still warming are removed first, as by Ray Serve.
            leaving, kept = groups - decision.target, []
            for when, count in reversed(pending):
                kept.append((when, count - min(leaving, count)))
                leaving -= min(leaving, count)
            pending = [item for item in reversed(kept) if item[1]]
        groups = decision.target
        path.append(groups)
    assert len(set(path[-200:])) == 1, path
    turns = [b - a for a, b in pairwise(path) if a != b]
    changes = sum((a > 0) != (b > 0) for a, b in pairwise(turns))
    assert changes <= 1, path
